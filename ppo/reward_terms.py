"""The terms of an episode's reward, as configured in `ppo.rewards`. docs/reward.md has an example."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import iscoroutinefunction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from warnings import catch_warnings

TAKEN = ("std", "scaled")
"""Names that would clash with the metrics `score_std` and `score_scaled`."""
FIELDS = {"model": ("path", "revision", "trust_remote_code"), "length": (), "python": ("function",)}
"""The fields that belong to one kind."""


@dataclass
class RewardTerm:
    """A term of the reward of an episode, which is their weighted sum. All ours: the paper's reward is the score of one
    reward model.
    """

    kind: Literal["model", "length", "python"] = "model"
    """`model`, the score of a reward model; `length`, the number of response tokens; `python`, a function. Ours."""
    weight: float = 1.0
    """Factor in the sum; negative for a penalty, 0 to log the term only. Ours."""
    name: str | None = None
    """Its mean is logged as `score_<name>`. Default: `model`, the last part of `path`, `length` or the function's name.
    """
    path: str | None = None
    """A reward model with any tokenizer: a folder, or a name on the Hub. Default: the run's own reward model."""
    revision: str | None = None
    """Commit or tag of `path` on the Hub; null pins the commit that is current when the run starts."""
    trust_remote_code: bool = False
    """Run Python code that comes with `path`. Off unless you trust its author."""
    function: str | None = None
    """`module:function` or `path/to/file.py:function`, called as trl calls reward functions, without its logging hooks:
    `function(prompts=, completions=, completion_ids=, **columns)` returns a list of floats."""

    @property
    def is_own_model(self) -> bool:
        """Whether it is the run's own reward model."""
        return self.kind == "model" and self.path is None

    @property
    def label(self) -> str:
        """Its name in the metrics."""
        defaults = {"model": Path(self.path or "model").name, "length": "length"}
        return self.name or defaults.get(self.kind) or (self.function or "").rpartition(":")[2]

    @property
    def source(self) -> str | None:
        """The local file or folder that it is loaded from, if it has one: a model, or the function's module."""
        return self.path if self.function is None else function_file(self.function)

    def validate(self, where: str) -> None:
        """Raises ValueError on contradictions, or if the function's module or file does not exist."""
        for kind, names in FIELDS.items():
            for name in names if kind != self.kind else ():
                if getattr(self, name):
                    raise ValueError(f"{where}.{name} belongs to kind: {kind}, and this term is of kind: {self.kind}")
        if self.path is None and (self.revision or self.trust_remote_code):
            raise ValueError(f"{where}.revision and .trust_remote_code belong to a path, which is not given")
        if self.kind == "python":
            if self.function is None:
                raise ValueError(f"{where} needs a function: module:function or path/to/file.py:function")
            function_file(self.function)


def validate_terms(terms: Sequence[RewardTerm], value_init: str) -> None:
    """Raises ValueError for an unusable list of terms."""
    if not terms:
        raise ValueError("ppo.rewards is empty: give it a term, such as {kind: model}, the run's reward model")
    known = {name: f"the metric score_{name}" for name in TAKEN}
    for index, term in enumerate(terms):
        where = f"ppo.rewards[{index}]"
        term.validate(where)
        if term.label in known:
            raise ValueError(f"{where}: the name {term.label!r} is taken by {known[term.label]}: set another name")
        known[term.label] = where
    if not any(term.weight for term in terms):
        raise ValueError("the weights in ppo.rewards are all 0, so there is nothing to learn: set one of them")
    if value_init == "reward" and not any(term.is_own_model and term.weight for term in terms):
        raise ValueError(
            "ppo.rewards does not contain the run's reward model, or gives it weight 0, and the value model starts "
            "from it: add {kind: model}, or set ppo.value_init=sft"
        )


def function_file(function: str) -> str | None:
    """The file that defines a function, None for a module without one. Raises ValueError if there is no such module or
    file; does not import the module, only its parents.
    """
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"the reward function {function!r} must be module:function or path/to/file.py:function")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"the reward function {function!r} cannot be loaded: {place} does not exist")
        return place
    try:
        found = find_spec(place)
    except ModuleNotFoundError as error:
        if not f"{place}.".startswith(f"{error.name}."):  # a package imports a module that is missing
            raise ValueError(f"the reward function {function!r} cannot be loaded: {error}") from error
        found = None
    except (Exception, SystemExit) as error:  # its packages may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"the reward function {function!r} cannot be loaded ({problem})") from error
    if found is None:
        raise ValueError(f"the reward function {function!r} cannot be loaded: there is no module {place!r}")
    return found.origin if found.has_location else None


@contextmanager
def settings_restored() -> Iterator[None]:
    """Undoes what scripts often set when a user's code runs within: torch's gradients, autocast, default dtype and
    device, filters of warnings, and the working directory.
    """
    import torch

    switches = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    gradients, dtype, folder = torch.is_grad_enabled(), torch.get_default_dtype(), os.getcwd()
    device = torch.get_default_device()
    try:
        with catch_warnings():
            yield
    finally:
        for kind, enabled in switches.items():
            torch.set_autocast_enabled(kind, enabled)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        os.chdir(folder)


def load_function(function: str) -> Callable[..., Any]:
    """Imports a function. Raises ValueError if that fails or it is not callable."""
    with settings_restored():
        return _load(function)


@cache
def _module(file: str, mtime_ns: int) -> ModuleType:
    """A file as a module, executed again only if it has changed: pickled functions must be those of `sys.modules`."""
    if (folder := str(Path(file).resolve().parent)) not in sys.path:
        sys.path.append(folder)  # spawned workers inherit the path, and import the module of a pickled function
    spec = spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    known = sys.modules.get(module.__name__)
    # A file called json.py must not replace the library for the rest of the program.
    if known is None or getattr(known, "__file__", None) == module.__file__:
        sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _load(function: str) -> Callable[..., Any]:
    file, (place, _, name) = function_file(function), function.rpartition(":")
    try:
        if file is not None and place.endswith(".py"):
            module = _module(file, Path(file).stat().st_mtime_ns)
        else:
            module = import_module(place)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the reward function {function!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"the reward function {function!r} is not callable: {place} has no function {name!r}")
    if iscoroutinefunction(found) or iscoroutinefunction(type(found).__call__):
        raise ValueError(f"the reward function {function!r} is asynchronous: write `def {name}`, without async")
    return found
