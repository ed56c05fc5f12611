"""Freed memory is kept, unless the environment says otherwise.

pytest tests/modeling/test_memory.py
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from modeling.memory import keep_freed_memory

if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
    print("another C library")
    raise SystemExit

keep_freed_memory()

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(20 * 2**20) for _ in range(6)]
    for block in blocks:
        for place in range(0, len(block), 4096):
            block[place] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(new_pages(), new_pages())
"""


@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "100000"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=100000"}, False),
    ],
)
def test_what_was_freed_is_used_again(settings: dict[str, str], keeps: bool) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
    } | settings
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    if told[0] == "another":
        pytest.skip("the C library is not glibc, which alone is told to keep memory")
    first, second = map(int, told)
    assert first > 25_000
    assert (second < 1_000) is keeps
