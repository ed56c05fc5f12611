"""Saves and loads the tensors of a training state with torch.distributed.checkpoint. Each process writes and reads its
own shards, so the state is never gathered, and any number of processes can load it.

The files are safetensors (torch's Hugging Face storage). Names and shapes are read from them, because torch would write
a metadata file as a pickle.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes and flushes tensors called `<group>/<name>`, a file per group and process. All processes must call this; a
    replicated tensor is written by one of them. An error in any process is raised in all.
    """
    groups = sorted({name.split("/")[0] for name in tensors})
    # DCP serializes each file in memory, so one file per group needs less memory than a single file.
    files = {name: groups.index(name.split("/")[0]) + 1 for name in tensors}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with plain_errors():
        # Sorted, because the order decides which process writes a replicated tensor, and a resumed run has another one.
        dcp.save(dict(sorted(tensors.items())), storage_writer=writer, no_dist=alone())


def load_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Reads into tensors, whole or sharded over any number of processes; all processes must call this."""
    with plain_errors():
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone())


def saved_shapes(folder: Path) -> dict[str, torch.Size]:
    """The global shape of each saved tensor."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def weight_tensors(group: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, or their EMA, by their names in a checkpoint."""
    return {f"{group}/{name}": weight.detach() for name, weight in weights.items()}


def optimizer_tensors(
    group: str, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Adam's state as `<group>/<parameter>//<name>`; the learning rate follows from the step."""
    return {
        f"{group}/{name}//{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def allocate_optimizer(
    group: str,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    saved: Mapping[str, torch.Size],
) -> None:
    """Allocates the state of an optimizer that has not taken a step, for loading the saved tensors into it."""
    for path, shape in saved.items():
        name, _, key = path.removeprefix(f"{group}/").partition("//")
        if path.startswith(f"{group}/") and name in parameters:
            parameter = parameters[name]
            # Fused Adam keeps its step counter on the parameter's device too.
            zeros = torch.zeros_like(parameter.detach()) if shape else torch.zeros((), device=parameter.device)
            optimizer.state[parameter][key] = zeros


def alone() -> bool:
    """Whether there are no other processes."""
    return not dist.is_initialized()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Context manager that replaces a `CheckpointException` by the error of the failed process with the lowest rank."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            yield
    except CheckpointException as error:
        first, _ = error.failures[min(error.failures)]
        raise first from error
