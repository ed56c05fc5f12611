"""Copies of folders."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from modeling.disk import copy_folder


def test_a_folder_is_copied_into_another_and_the_first_failure_is_raised_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "model").mkdir(parents=True)
    for name in ("model/a", "b", "left_out"):
        (source / name).write_text(name)
    target.mkdir()
    ignored = shutil.ignore_patterns("left_out")

    def full(one: str, other: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), one, None, other)

    with pytest.raises(OSError, match="No space left on device") as caught:
        copy_folder(source, target, full, ignored)
    assert (caught.value.errno, Path(caught.value.filename2).parent) in [
        (errno.ENOSPC, target), (errno.ENOSPC, target / "model")
    ]  # fmt: skip
    copy_folder(source, target, shutil.copy2, ignored)
    assert {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()} == {"model/a", "b"}
