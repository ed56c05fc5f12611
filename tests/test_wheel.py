"""The packages and files that a wheel of the project would contain."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_wheel_contains_every_package_and_the_files_that_it_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")} - {"tests", "benchmarks"}
    found = {path.parent.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("__init__.py")}
    assert set(settings["packages"]) == {path.as_posix().replace("/", ".") for path in found}
    data = settings["package-data"].items()
    patterns = [(ROOT / package.replace(".", "/"), pattern) for package, globs in data for pattern in globs]
    packed = {path for folder, pattern in patterns for path in folder.glob(pattern)}
    assert {path.suffix for path in packed} >= {".jsonl", ".j2"}
    for folder in settings["packages"]:
        other = [path for path in (ROOT / folder.replace(".", "/")).rglob("*") if path.is_file()]
        assert {path for path in other if path.suffix not in (".py", ".pyc")} <= packed
