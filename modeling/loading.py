"""What can go wrong when a library loads a model or a tokenizer, as one sentence."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from modeling.memory import out_of_memory

LFS_POINTER = b"version https://git-lfs"
"""The beginning of the text file that a clone without Git LFS has in place of a large file."""


@contextlib.contextmanager
def loading(place: str | Path, what: str) -> Iterator[None]:
    """Context for calls of a library that load from `place`, and for no code of this project.

    A configuration that does not fit its weights can raise anything in the library. Raises ValueError with the
    beginning of the library's message; errors that report a lack of memory are not changed.
    """
    folder = Path(place)
    if folder.is_file():
        raise ValueError(f"{place} is a file: give the folder with config.json and weights in safetensors format")
    if folder.is_dir() and not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = ": it is a LoRA adapter; merge it into its base and save that" if adapter else ""
        names = (path.parent.name for path in folder.glob("checkpoint-*/config.json"))
        checkpoints = sorted(names, key=lambda name: (len(name), name))
        if checkpoints:
            hint = f"; give one of its checkpoints: {', '.join(checkpoints)}"
        if (folder / "snapshots").is_dir():
            hint = ": it is a folder of the Hub's cache; give the model's name, or a folder in its `snapshots`"
        raise ValueError(f"the folder {place} holds no config.json, so there is no {what} to load{hint}")
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:300] or "no details"
        if not isinstance(error, (OSError, ValueError, SafetensorError)):
            why = f"{type(error).__name__}: {why}"
        if folder.is_dir() or not isinstance(error, OSError):
            raise ValueError(f"cannot load a {what} from {place!s} ({why})") from error
        raise ValueError(
            f"cannot load a {what} from {place!s}: it is neither a folder here nor a model that could be fetched "
            f"({why})"
        ) from error


def require_vocabulary(tokenizer: Any, place: str | Path) -> None:
    """Raises ValueError for a tokenizer of special tokens only, which transformers makes where files are missing."""
    if len(tokenizer) - len(tokenizer.added_tokens_decoder) < 2:
        raise ValueError(
            f"the tokenizer of {place} has only special tokens: its files (tokenizer.json, vocab.json and merges.txt, "
            "or tokenizer.model) are missing or broken; save them there with the tokenizer's save_pretrained"
        )


def require_safetensors(place: str | Path, name: str) -> None:
    """Raises ValueError for a folder without weights in safetensors format; `name` is for the message."""
    if not Path(place).is_dir():
        return
    files = sorted(Path(place).glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{name}: the folder has no weights in safetensors format, and pickled ones (pytorch_model.bin) are never "
            "read: load the model with transformers and save it again"
        )
    # Others, such as Mistral's consolidated.safetensors, are not read.
    for file in [file for file in files if file.name.startswith("model")] or files:
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{name}: {file.name} is a Git LFS pointer, not the weights: run `git lfs pull`")


def refuse_misfit(place: str | Path, model: Any, found: Mapping[str, Any]) -> None:
    """Raises ValueError for weights that do not fit the model, from transformers' loading information. transformers
    would initialize missing weights at random, and drop those of extra layers and parameters that a layer lacks.
    """
    if missing := found["missing_keys"]:
        raise ValueError(
            f"{place} lacks {len(missing)} of its model's weights, {min(missing)} among them: is it another kind of "
            "model?"
        )
    for name, *shapes in sorted(found["mismatched_keys"])[:1]:
        saved, expected = (tuple(shape) for shape in shapes)
        raise ValueError(f"{place} does not fit its config.json: {name} has the shape {saved}, expected {expected}")
    known = set(map(without_numbers, model.state_dict()))
    if further := [name for name in found["unexpected_keys"] if without_numbers(name) in known]:
        raise ValueError(
            f"{place} has weights of more layers than its config.json says, {min(further)} among them: correct the "
            "number of layers there"
        )
    layers = {name for name, module in model.named_modules() if next(module.children(), None) is None}
    if further := [name for name in found["unexpected_keys"] if name.rpartition(".")[0] in layers]:
        raise ValueError(
            f"{place} has weights that its layers have no place for, {min(further)} among them: correct its "
            "config.json (a bias may need attention_bias or mlp_bias), or save the model without them"
        )


def without_numbers(name: str) -> str:
    """A weight's name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".N.", name)
