"""Work that the first process does alone may take longer than the timeout of collectives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAM = """
import time
from contextlib import nullcontext
from modeling.accelerator import from_main, main_alone, make_accelerator

accelerator = make_accelerator("cpu", timeout_minutes=3 / 60)
with main_alone(accelerator) if {waits} else nullcontext():
    if accelerator.is_main_process:
        time.sleep(8)
print(from_main(accelerator, lambda: "heard"), accelerator.process_index, flush=True)
accelerator.end_training()
"""
LEAVING = """
import os, time
from modeling.accelerator import main_alone, make_accelerator

accelerator = make_accelerator("cpu", timeout_minutes=1)
with main_alone(accelerator):
    time.sleep(accelerator.process_index)
os._exit(0)
"""


@pytest.mark.parametrize("waits", [True, False])
def test_only_main_alone_outlasts_the_timeout(waits: bool, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(waits=waits))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = subprocess.run([*launcher, tmp_path / "program.py"], capture_output=True, text=True, timeout=100)
    assert (found.returncode == 0) is waits, found.stderr
    assert ("heard 1" in found.stdout) is waits


def test_rank_0_stays_alive_until_the_other_ranks_have_left_main_alone() -> None:
    """Without torchrun the first process holds the store of the process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVING],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
