"""A stage's manifest: its configuration, inputs and outputs, with digests that tell a later run whether anything
changed.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import resource
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modeling.disk import file_digest, write_whole
from modeling.memory import return_freed_memory
from stages.config import STAGES

NAME = "manifest.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")


@dataclass
class Manifest:
    """Provenance of a stage's result."""

    stage: str
    fingerprint: str
    """Hash of `settings` and `inputs`; equal fingerprints mean equal results."""
    config: dict[str, Any]
    """The whole configuration."""
    inputs: dict[str, str]
    """Name -> digest."""
    outputs: dict[str, dict[str, Any]]
    """Path in the stage's folder -> {sha256, size, mtime_ns}."""
    headline: dict[str, Any]
    seed: int
    world_size: int
    device: str
    started: str
    ended: str
    seconds: float
    """Wall-clock seconds, with interrupted sessions; `cpu_seconds` and `peak_memory_gib` are of the last session."""
    cpu_seconds: float | None = None
    """CPU time of all threads of the first process."""
    peak_memory_gib: float | None = None
    """Peak memory of the first process in this stage: on the GPU if the process has used one, otherwise resident."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The parts of `config` that the result depends on, by dotted name."""
    git_commit: str | None = field(default_factory=lambda: git_commit())
    python: str = field(default_factory=platform.python_version)
    packages: dict[str, str] = field(
        default_factory=lambda: {name: importlib.metadata.version(name) for name in PACKAGES}
    )

    def write(self, folder: Path) -> None:
        """Writes manifest.json into the folder."""
        write_whole(folder / NAME, f"{json.dumps(asdict(self), indent=2)}\n".encode())


def reset_peak_memory() -> None:
    """Resets the peak that `peak_memory_gib` returns, since a pipeline runs all stages in one process. The peak of
    resident memory is not reset where /proc/self/clear_refs cannot be written, as in some containers and on macOS.
    """
    import torch

    return_freed_memory()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Peak memory of this process since `reset_peak_memory`: on the GPU if it has used one, otherwise resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_reserved() / 2**30, 3)
    status = Path("/proc/self/status")
    if status.is_file() and "VmHWM:" in (text := status.read_text()):  # getrusage's peak cannot be reset
        return round(int(text.split("VmHWM:")[1].split()[0]) / 2**20, 3)
    unit = 1 if platform.system() == "Darwin" else 2**10  # getrusage counts bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def read(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder; None if there is no complete result. Raises ValueError if it is damaged."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        return Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged manifest ({error}); remove the folder {folder} and run the stage again"
        ) from None


def file_record(path: Path) -> dict[str, Any]:
    """Digest, size and modification time of a file."""
    stat = path.stat()
    return {"sha256": file_digest(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def model_digests(*places: str | None) -> dict[str, str]:
    """Path -> digest of local model folders and files, without model cards. Weights, which take seconds to hash, are
    represented by their size and modification time. Hub names are skipped.
    """
    found = {}
    for place in places:
        path = Path(place) if place else None
        if path is not None and path.exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            stats = {
                str(f): [f.stat().st_size, f.stat().st_mtime_ns] if f.suffix == ".safetensors" else file_digest(f)
                for f in files
                if f.is_file() and f.name != "README.md"
            }
            found[str(path)] = digest_of(stats)
    return found


def output_records(folder: Path, ignored: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Records of all files below a folder, without the manifest and the `ignored` files and subfolders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {str(f.relative_to(folder)): file_record(f) for f in files if f.relative_to(folder).parts[0] not in ignored}


def stage_digest(folder: Path) -> str:
    """Digest of a finished stage's outputs. Files modified since are hashed again, so that manual edits count.

    Raises ValueError when the stage has no result or a file of it is missing.
    """
    manifest = read(folder)
    if manifest is None:
        pipeline = ", or `make pipeline` for all stages in order" if folder.name in STAGES else ""
        raise ValueError(f"{folder} holds no finished result: run `make {folder.name}` first{pipeline}")
    digests = {}
    for name, record in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: run the {folder.name} stage again with --force")
        stat = path.stat()
        same = stat.st_size == record["size"] and stat.st_mtime_ns == record["mtime_ns"]
        digests[name] = record["sha256"] if same else file_digest(path)
    return digest_of(digests)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def git_commit() -> str | None:
    """The checkout's commit, with `+dirty` if tracked or new files differ from it; None outside git."""
    try:
        root = Path(__file__).resolve().parents[1]
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+dirty" if changed else "")
