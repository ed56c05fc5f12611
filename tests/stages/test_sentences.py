"""Errors give one sentence, with exit code 2 if the user can fix them and 1 for a bug, and a traceback file."""

import errno
import io
import os
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.files import write_rows
from modeling.accelerator import sendable
from stages.config import RunConfig
from stages.runner import RunFolder, Stage, main, run_stage

HERE = Path(__file__).parents[2]
IN_RUN = "/run" if sys.version_info >= (3, 14) else ""
"""From Python 3.14 on `is_file` hides errors, so that they occur when the run folder is created."""


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """(exit code, stderr) of a command whose stage does this work, in the run folder `tmp_path/runs/run`."""

    def run(work: Callable[[Path], Any], *more: str) -> tuple[int, str]:
        def stage(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
            work(out)
            return {}

        def command(config: RunConfig, force: bool) -> None:
            run_stage(Stage("data", sections=("data",), after=(), work=stage), config)

        given = ["--runs_folder", str(tmp_path / "runs"), "--run_name", "run", "--model.device", "cpu", *more]
        with pytest.raises(SystemExit) as stopped:
            main(command, "stages.x", "", given)
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capsys.readouterr().err

    return run


def failing(error: BaseException) -> Callable[[Path], None]:
    def work(out: Path) -> None:
        raise error

    return work


def test_where_space_is_short_the_error_says_no_more_than_that(
    told: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.errors.free_bytes", lambda folder: 2**20)
    _, stderr = told(failing(OSError(errno.ENOSPC, "No space left on device")))
    assert "has 1.0 MiB free): free some space and run the command again to resume" in stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a sentence\n over two lines"), "error: a sentence over two lines"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/cache/model"),
            "/cache/model: Permission denied: change its permissions",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/cache/model"),
            "/cache/model: Read-only file system: choose a writable place",
        ),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "rows.jsonl"),
            "rows.jsonl: Is a directory: expected a file, found a folder",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"),
            "a/b: Not a directory: expected a folder",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"), "gone: No such file or directory"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "MiB free; the output may go to a file on a full disk): free some space and run the command again to "
            "resume",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "free some space and run the command again",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 46208 vs 46100"),
            "a checkpoint could not be written ([enforce fail at inline_container.cc:672]",
        ),
        (
            SafetensorError("Error while deserializing header: header too large"),
            "header too large (safetensors's SafetensorError)",
        ),
        (
            UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte"),
            "not UTF-8 (byte 0xff at 2): save it as UTF-8",
        ),
        (MemoryError(), "out of memory (no details): lower sft.micro_batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "ppo.max_tokens_per_micro_batch"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (
            RuntimeError("unable to mmap 9 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
            "out of memory",
        ),
        (
            OfflineModeIsEnabled("Cannot reach https://huggingface.co/x: offline mode is enabled."),
            "offline mode is enabled",
        ),
        (LocalEntryNotFoundError("Cannot find x in the cache, and the network is down."), "the network is down"),
        (
            DatasetGenerationError("An error occurred while generating the dataset"),
            "(datasets's DatasetGenerationError)",
        ),
        (ImportError("This model needs einops. Run `pip install einops`"), "pip install einops"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_that_a_user_can_fix_is_one_sentence_and_exit_code_2(
    told: Callable[..., tuple[int, str]], tmp_path: Path, error: Exception, said: str
) -> None:
    code, stderr = told(failing(error))
    assert code == 2
    assert said in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    assert type(error).__name__ in (tmp_path / "runs" / "run" / "last_error.txt").read_text()


@pytest.mark.parametrize(
    "error",
    [AssertionError("an invariant"), KeyError("x"), TypeError("no"), RuntimeError("shapes differ"), RecursionError()],
)
def test_a_bug_is_reported_as_one_with_the_path_of_its_traceback(
    told: Callable[..., tuple[int, str]], tmp_path: Path, error: Exception
) -> None:
    code, stderr = told(failing(error))
    file = tmp_path / "runs" / "run" / "last_error.txt"
    assert code == 1
    assert (
        stderr
        == f"error: internal error: {type(error).__name__}: {error}; the traceback is in {file}; please report it\n"
    )
    assert "in work\n" in file.read_text()


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda out: (out / "counts.json").write_text("x" * 2**20),
    "rows": lambda out: write_rows(out / "samples.jsonl", [{"text": "x" * 2**20}]),
    "weights": lambda out: save_file({"weight": torch.zeros(2**20)}, out / "model.safetensors"),
    "table": lambda out: pyarrow.parquet.write_table(
        pyarrow.table({"x": [os.urandom(2**20)]}), out / "sft_train.parquet"
    ),
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 KiB, as on a full disk; the error is EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_one_sentence_for_every_kind_of_write(
    told: Callable[..., tuple[int, str]], tmp_path: Path, kind: str
) -> None:
    code, stderr = told(WRITERS[kind])
    assert code == 2, stderr
    assert "File too large" in stderr
    assert "free some space and run the command again to resume" in stderr
    assert str(tmp_path / "runs" / "run") in stderr, "the message names a place on the disk"
    assert stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "run" / "data").exists()


@pytest.mark.parametrize("file", ["runs", "runs/run"])
def test_a_run_folder_below_a_file_names_the_file(
    told: Callable[..., tuple[int, str]], tmp_path: Path, file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    code, stderr = told(lambda out: None)
    assert code == 2
    assert stderr == (
        f"error: the run folder cannot be {tmp_path / 'runs' / 'run'}: {tmp_path / file} is a file; change "
        "runs_folder or run_name\n"
    )


def test_a_read_only_run_folder_keeps_the_traceback_elsewhere(
    told: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who ignores permissions."""
    real = Path.write_text

    def write_text(path: Path, *given: Any, **named: Any) -> int:
        if path.is_relative_to(tmp_path / "runs"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", write_text)
    code, stderr = told(lambda out: (out / "counts.json").write_text("x"))
    assert code == 2
    assert "counts.json: Read-only file system" in stderr
    kept = Path(stderr.rsplit("(the traceback is in ", 1)[1].removesuffix(")\n"))
    assert not kept.is_relative_to(tmp_path / "runs")
    assert "Traceback" in kept.read_text()
    kept.unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run_name", "x" * 260], "run_name has 260 characters, more than the 255 of a folder's name"),
        (["--runs_folder", "x" * 260], f"{'x' * 260}{IN_RUN}: File name too long: choose a shorter name"),
    ],
    ids=["run_name", "runs_folder"],
)
def test_a_folder_name_that_is_too_long_is_one_sentence(
    told: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, stderr = told(lambda out: None, *arguments)
    assert code == 2
    assert stderr.startswith(f"error: {said}")
    assert stderr.count("\n") == 1


def test_a_run_folder_that_may_not_be_read_is_one_sentence(
    told: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who ignores permissions."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def denied(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *given: Any, **named: Any) -> Any:
            if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(tmp_path / "runs"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *given, **named)

        return call

    for name in ("stat", "mkdir"):
        monkeypatch.setattr(os, name, denied(getattr(os, name)))
    code, stderr = told(lambda out: None)
    assert code == 2
    assert stderr.startswith(f"error: {tmp_path / 'runs'}{IN_RUN}: Permission denied: change its permissions")
    assert stderr.count("\n") == 1


def test_a_closed_pipe_is_one_sentence_and_leaves_no_noise(tmp_path: Path) -> None:
    script = "import os; from stages.errors import report\n" + (
        "import sys\ntry:\n    os.read(0, 1); print('x', flush=True)\nexcept OSError as error:\n    "
        "sys.exit(report(error, None))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate("x", timeout=120)
    assert process.returncode == 2
    assert "the output was closed" in stderr
    assert stderr.count("\n") == 1
    Path(stderr.rsplit("(the traceback is in ", 1)[1].removesuffix(")\n")).unlink()


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    main(lambda config, force: print("prix: 5 \u20ac"), "stages.x", "", [])
    assert screen.buffer.getvalue() == b"prix: 5 \\u20ac\n"  # type: ignore[attr-defined]


def test_a_stage_runs_with_stdout_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no `sys.stdout` where the shell closed it, as in `>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    main(lambda config, force: print("done"), "stages.x", "", [])


def test_a_broken_pipe_to_a_worker_is_not_taken_for_a_closed_output(told: Callable[..., tuple[int, str]]) -> None:
    code, stderr = told(failing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert code == 2
    assert "output was closed" not in stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "mine.yaml does not exist: give a YAML file"),
        ("folder", "mine.yaml is a folder: give a YAML file"),
        (b"run_name: x\ndata:\n  demonstrations: [seed\n  foo: 1\n", "mine.yaml:4: not YAML: "),
        (b"run_name: \xff\n", "mine.yaml: not UTF-8 text (byte 0xff at 10)"),
        (b"run_name: \x00\n", "mine.yaml: not YAML: "),
    ],
    ids=["missing", "folder", "yaml", "encoding", "binary"],
)
def test_a_config_file_that_cannot_be_read_is_named(
    told: Callable[..., tuple[int, str]], tmp_path: Path, content: bytes | str | None, said: str
) -> None:
    file = tmp_path / "mine.yaml"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    code, stderr = told(lambda out: None, "--config", str(file))
    assert code == 2
    assert said in stderr
    assert stderr.count("\n") == 1


def test_an_error_that_cannot_be_sent_to_other_processes_keeps_its_class_and_words() -> None:
    class OddError(OSError):
        def __init__(self, response: object) -> None:
            super().__init__(f"status {response}")
            self.kept = select.poll()  # which cannot be pickled

    found = sendable(OddError(404))
    assert type(found) is OSError
    assert str(found) == "OddError: status 404"
    kept = ValueError("plain")
    assert sendable(kept) is kept


def test_damaged_weights_are_an_error_that_a_user_can_fix(told: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    code, stderr = told(lambda out: safe_open(tmp_path / "model.safetensors", "pt"))
    assert code == 2
    assert stderr.count("\n") == 1
