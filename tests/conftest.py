"""Tiny random models that every folder's tests share, each built once a session, and an environment that touches
nothing of the user's.
"""

import gc
import os
import signal
import tempfile

# Read by libraries and by data/ when they are imported or first used, so set before any of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at a time, and idle threads spin
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["ACCELERATE_USE_CPU"] = "true"
SCRATCH = tempfile.TemporaryDirectory(prefix="rlhf-ptx-tests-")
os.environ["RLHF_PTX_CACHE"] = SCRATCH.name

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from tqdm import tqdm  # noqa: E402

from modeling.config import ModelConfig  # noqa: E402

# torch and what needs it are imported inside the fixtures: xdist's controller, which runs no test, reads this file
# before it starts the workers.

# tqdm's monitor thread could hold its lock while a test forks, and the fork would deadlock.
tqdm.monitor_interval = 0

# Shells ignore SIGINT in background jobs and nohup ignores SIGHUP; some tests send both to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs except from `make gpu-check`: the other tests fork processes and compare results of the CPU."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the slowest folder first, so that no worker waits for another one at the end."""
    items.sort(key=lambda item: item.path.parent.name != "stages")


def pytest_collection_finish() -> None:
    """Takes imports and collected tests, millions of objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def ready_to_fork() -> None:
    """torch on one thread, and autograd without device threads: with them, forked processes cannot train.

    Autograd starts a thread for each known device in the first backward pass. A torch built for CUDA knows one more
    device once a test has used fake tensors.
    """
    import torch

    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).backward()


@pytest.fixture(autouse=True)
def reset_accelerate() -> Iterator[None]:
    """accelerate's state is global: processes that a later test forks would inherit it."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("oasst/en_100_tree.jsonl")`: a file or folder of real public data, which the project does not bring
    along.

    It lies under $RLHF_PTX_SHARED_DATA, or under shared/data beside the checkout; the test that asks for it is skipped
    where it is not.
    """
    root = Path(os.environ.get("RLHF_PTX_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

    def get(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no real data: {name} is not under {root} (set RLHF_PTX_SHARED_DATA to where it is)")
        return root / name

    return get


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("gpt2")`: the folder of a tiny model of that architecture, with its tokenizer. Do not write into it."""
    from modeling.tiny import make_tiny_model

    built: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in built:
            built[architecture] = make_tiny_model(tmp_path_factory.mktemp("tiny") / architecture, architecture)
        return built[architecture]

    return get


@pytest.fixture(scope="session")
def tiny_llama(tiny: Callable[[str], Path]) -> Path:
    """The folder of a tiny llama. Do not write into it."""
    return tiny("llama")


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    """Full fine-tuning on the CPU in float32; the base is given to loaders by hand."""
    return ModelConfig(base="unused", adapter="none", device="cpu", precision="float32")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama: Path, model_config: ModelConfig) -> Any:
    """The tokenizer of all tiny models, as the stages load it."""
    from modeling.load import load_tokenizer

    return load_tokenizer(tiny_llama, model_config)


@pytest.fixture
def tiny_causal(tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any) -> Callable[[str], Any]:
    """`tiny_causal("llama")`: a fresh language model of that architecture, with opinions of its own (see `enliven`)."""
    from modeling.load import load_causal

    return lambda architecture: enliven(load_causal(tiny(architecture), model_config, tiny_tokenizer))


@pytest.fixture
def tiny_scalar(tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any) -> Callable[[str], Any]:
    """`tiny_scalar("llama")`: a fresh reward model of that architecture, with opinions of its own (see `enliven`)."""
    from modeling.load import load_scalar

    return lambda architecture: enliven(load_scalar(tiny(architecture), model_config, tiny_tokenizer))


def enliven(model: Any, seed: int = 0) -> Any:
    """Draws larger weights: at its first ones a random model answers nearly the same to everything, and a wrong mask or
    position hardly shows.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.35 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
