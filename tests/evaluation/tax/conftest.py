"""A tiny model with opinions of its own, as a saved model under test."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.models import ComparedModel
from evaluation.tax.config import TaxConfig
from evaluation.tax.model import TaxModel
from modeling.config import ModelConfig
from modeling.load import load_causal, save
from tests.conftest import enliven
from tests.fakes import FakeAccelerator


@pytest.fixture(scope="session")
def saved(
    tmp_path_factory: Any, tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any
) -> Callable[..., Path]:
    """`saved("gpt2", 1)`: the folder of a tiny model with weights of this seed."""
    made: dict[tuple[str, int], Path] = {}

    def get(architecture: str = "llama", seed: int = 0) -> Path:
        if (architecture, seed) not in made:
            folder = made[architecture, seed] = tmp_path_factory.mktemp("saved") / architecture
            save(enliven(load_causal(tiny(architecture), model_config, tiny_tokenizer), seed), tiny_tokenizer, folder)
        return made[architecture, seed]

    return get


@pytest.fixture
def tax_model(saved: Callable[..., Path], model_config: ModelConfig, tmp_path: Path) -> Callable[..., TaxModel]:
    """`tax_model("gpt2", max_new_tokens=4)`: that model, with settings of the alignment tax."""
    return lambda architecture="llama", **settings: TaxModel(
        ComparedModel("base", str(saved(architecture)), model_config, 1),
        replace(TaxConfig(), **settings),
        FakeAccelerator(),  # type: ignore[arg-type]
        tmp_path / "scratch",
    )
