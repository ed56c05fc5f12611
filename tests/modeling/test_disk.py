"""Copies of folders."""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from modeling.disk import copy_folder
from stages.runner import linked


def test_a_folder_is_copied_into_another_and_the_first_failure_is_raised_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "model").mkdir(parents=True)
    for name in ("model/a", "b", "left_out"):
        (source / name).write_text(name)
    target.mkdir()

    def full(one: str, other: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), one, None, other)

    with pytest.raises(OSError, match="No space left on device") as caught:
        copy_folder(source, target, full, "left_out")
    assert (caught.value.errno, Path(caught.value.filename2).parent) in [
        (errno.ENOSPC, target), (errno.ENOSPC, target / "model")
    ]  # fmt: skip
    copy_folder(source, target, shutil.copy2, "left_out")
    assert {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()} == {"model/a", "b"}


def test_the_copy_of_a_write_protected_folder_is_writable(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "model").mkdir(parents=True)
    (source / "model" / "config.json").write_text("{}")
    (source / "model" / "model.safetensors").write_text("weights")
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    copy_folder(source, target, linked, "absent")
    made = {str(path.relative_to(tmp_path)): bool(path.stat().st_mode & stat.S_IWUSR) for path in tmp_path.rglob("*")}
    weights = "target/model/model.safetensors"  # a link: changing its mode would change the other run's
    assert {path for path in made if path.startswith("target") and not made[path]} == {weights}
    assert not any(writable for path, writable in made.items() if path.startswith("source"))
