"""Work that the first process does alone may take longer than the timeout of collectives."""

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


@pytest.mark.parametrize("waits", [True, False])
def test_only_main_alone_outlasts_the_timeout(waits: bool, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(waits=waits))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = subprocess.run([*launcher, tmp_path / "program.py"], capture_output=True, text=True, timeout=100)
    assert (found.returncode == 0) is waits, found.stderr
    assert ("heard 1" in found.stdout) is waits
