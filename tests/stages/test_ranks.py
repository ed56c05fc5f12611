"""Two processes (gloo): which one prints an error, how the other one ends, and how long it waits."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch.distributed import TCPStore

from modeling.accelerator import from_main, make_accelerator
from modeling.config import ProcessesConfig
from stages import ranks
from stages.config import RunConfig
from stages.runner import main

Work = Callable[[Accelerator], Any]


def one_of_two(rank: int, port: int, folder: Path, work: Work, arguments: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with (folder / f"{rank}.stderr").open("w") as file:
        os.dup2(file.fileno(), 2)
        sys.stderr = file

        def command(config: RunConfig, force: bool) -> None:
            work(make_accelerator("cpu", config.processes.timeout_minutes))

        main(command, "stages.x", "", ["--runs_folder", str(folder), "--run_name", "run", *arguments])


def two(folder: Path, work: Work, *arguments: str) -> tuple[list[int | None], list[str]]:
    """(exit code of each process, what each printed on stderr, without torch's own warnings)."""
    (folder / "run").mkdir()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's agent hosts it
    context = multiprocessing.get_context("fork")
    pair = [
        context.Process(target=one_of_two, args=(rank, store.port, folder, work, list(arguments))) for rank in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
        if process.is_alive():
            process.kill()
    lines = [(folder / f"{rank}.stderr").read_text().splitlines(keepends=True) for rank in range(2)]
    return [process.exitcode for process in pair], [
        "".join(line for line in some if line.startswith("error")) for some in lines
    ]


def fails_on(rank: int) -> Work:
    def work(accelerator: Accelerator) -> None:
        if accelerator.process_index == rank:
            raise ValueError("row 7 has no answer")
        accelerator.wait_for_everyone()

    return work


def test_an_error_on_another_process_is_printed_with_its_number_and_ends_the_first_with_a_sentence_that_names_it(
    tmp_path: Path,
) -> None:
    codes, printed = two(tmp_path, fails_on(1))
    assert codes == [2, 2]
    assert printed == [
        "error: stopped, because process 1 ended: row 7 has no answer\n",
        "error: process 1 of 2: row 7 has no answer\n",
    ]
    assert "row 7 has no answer" in (tmp_path / "run" / "last_error_of_process_1.txt").read_text()


def test_an_error_on_the_first_process_reads_as_on_one_alone(tmp_path: Path) -> None:
    codes, printed = two(tmp_path, fails_on(0))
    assert codes == [2, 2]
    assert printed[0] == "error: row 7 has no answer\n"
    assert printed[1] == "error: process 1 of 2: stopped, because process 0 ended: row 7 has no answer\n"


def test_an_error_of_all_processes_is_printed_once(tmp_path: Path) -> None:
    def work(accelerator: Accelerator) -> None:
        def broken() -> None:
            raise ValueError("no such model")

        from_main(accelerator, broken)

    codes, printed = two(tmp_path, work)
    assert codes == [2, 2]
    assert printed == ["error: no such model\n", ""]


def test_the_same_error_of_each_is_printed_once(tmp_path: Path) -> None:
    def work(accelerator: Accelerator) -> None:
        accelerator.wait_for_everyone()
        try:
            raise ValueError("a prompt is too long")
        finally:
            time.sleep(0.1 * accelerator.process_index)

    codes, printed = two(tmp_path, work)
    assert codes == [2, 2]
    assert "".join(printed).count("a prompt is too long") == 1


SECOND = 1 / 60


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "codes"), [(0.5 * SECOND, [2, 2]), (30 * SECOND, [0, 0])])
def test_work_of_the_first_process_alone_may_take_as_long_as_the_configuration_says(
    tmp_path: Path, minutes: float, codes: list[int]
) -> None:
    def alone(accelerator: Accelerator) -> None:
        from_main(accelerator, lambda: time.sleep(2.0))

    found, printed = two(tmp_path, alone, "--processes.timeout_minutes", str(minutes))
    assert found[1] == codes[1], printed
    if codes[1]:
        assert "waited longer than processes.timeout_minutes for another process" in printed[1]
    else:
        assert found == codes


def test_the_default_is_longer_than_torchs() -> None:
    assert RunConfig().processes.timeout_minutes > 30
    with pytest.raises(ValueError, match=r"processes\.timeout_minutes=0 must be above 0"):
        ProcessesConfig(timeout_minutes=0).validate()


def test_a_lost_connection_without_a_recorded_reason_has_nccls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(ranks, "failures", ranks.Failures)
    monkeypatch.setattr(ranks, "WORD_SECONDS", 0)
    lost = "stopped, because another process ended or cannot be reached"
    nccl = RuntimeError("NCCL error in: x.cpp:77\nncclUnhandled: failed\nLast error:\nError while creating /dev/shm/x")
    assert ranks.failure_elsewhere(nccl) == f"{lost} (Error while creating /dev/shm/x)"
    assert ranks.failure_elsewhere(RuntimeError("gloo: Connection closed by peer")) == lost
