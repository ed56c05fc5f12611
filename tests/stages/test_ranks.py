"""Two processes (gloo): which one prints an error, how the other one ends, and how long it waits."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from modeling.config import ProcessesConfig
from modeling.processes import Processes, processes
from stages.config import RunConfig
from stages.runner import main

Work = Callable[[Processes], Any]


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
            work(processes("cpu", config.processes.timeout_minutes))

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
    def work(team: Processes) -> None:
        if team.rank == rank:
            raise ValueError("row 7 has no answer")
        team.wait()

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
    def from_main(team: Processes) -> None:
        def broken() -> None:
            raise ValueError("no such model")

        team.from_main(broken)

    codes, printed = two(tmp_path, from_main)
    assert codes == [2, 2]
    assert printed == ["error: no such model\n", ""]


def test_the_same_error_of_each_is_printed_once(tmp_path: Path) -> None:
    def work(team: Processes) -> None:
        team.wait()
        try:
            raise ValueError("a prompt is too long")
        finally:
            time.sleep(0.1 * team.rank)

    codes, printed = two(tmp_path, work)
    assert codes == [2, 2]
    assert "".join(printed).count("a prompt is too long") == 1


SECOND = 1 / 60


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "codes"), [(0.5 * SECOND, [2, 2]), (30 * SECOND, [0, 0])])
def test_work_of_the_first_process_alone_may_take_as_long_as_the_configuration_says(
    tmp_path: Path, minutes: float, codes: list[int]
) -> None:
    def alone(team: Processes) -> None:
        team.from_main(lambda: time.sleep(2.0))

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
