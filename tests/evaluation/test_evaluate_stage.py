"""The evaluate stage on a hand-made run folder: evaluation.json of a PPO model that equals the SFT model."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.records import Demonstration
from data.sets import DOCUMENT_SCHEMA, set_file, set_schema
from evaluation.config import EvaluateConfig
from labeling.config import LabelsConfig
from modeling.config import ModelConfig
from modeling.load import load_causal, save
from stages.config import RunConfig
from stages.evaluate import work
from stages.runner import RunFolder
from tests.conftest import enliven

ASKED = [Demonstration(prompt=text, completion="So it is.") for text in ("Why?", "Name two rivers", "Write a poem.")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any, tiny: Any, model_config: ModelConfig, tiny_tokenizer: Any) -> RunFolder:
    """PPO's weights are the SFT model's."""
    root = tmp_path_factory.mktemp("run")
    model = enliven(load_causal(tiny("llama"), model_config, tiny_tokenizer))
    save(model, tiny_tokenizer, root / "sft" / "model")
    save(model, tiny_tokenizer, root / "ppo" / "model_ema")
    (root / "reward").mkdir()
    (root / "reward" / "accuracy.json").write_text(json.dumps({"test": {"accuracy": {"mean": 0.5}}}))
    (root / "data").mkdir()
    schema = set_schema("sft", conversational=False)
    rows = [{field: getattr(prompt, field, None) for field in schema.names} for prompt in ASKED]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), set_file(root / "data", "sft", "test"))
    texts = [{"text": "The sky is blue and the sea is deep. " * 8, "dataset": "mine"}]
    pq.write_table(pa.Table.from_pylist(texts, schema=DOCUMENT_SCHEMA), set_file(root / "data", "texts", "heldout"))
    return RunFolder(root)


def test_under_bfloat16_the_kl_of_sft_to_itself_is_exactly_zero(
    run: RunFolder, tiny_llama: Path, tmp_path: Path
) -> None:
    config = RunConfig(
        model=ModelConfig(base=str(tiny_llama), device="cpu", precision="bfloat16"),
        labels=LabelsConfig(closeness="words"),
        evaluate=EvaluateConfig(answers_per_prompt=2, max_new_tokens=8, perplexity_examples=2, bootstrap_resamples=50),
    )
    config.data.pretraining_tokens = 16
    headline = work(config, run, tmp_path)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert headline["kl"] == evaluation["kl"]["low"] == evaluation["kl"]["high"] == 0.0
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [row["kl"] for row in rows] == [0.0, 0.0, 0.0]


def test_greedy_answers_have_no_kl_since_an_estimate_takes_samples(
    run: RunFolder, tiny_llama: Path, tmp_path: Path
) -> None:
    config = RunConfig(
        model=ModelConfig(base=str(tiny_llama), device="cpu"),
        labels=LabelsConfig(closeness="words"),
        evaluate=EvaluateConfig(temperature=0.0, max_new_tokens=4, perplexity_examples=2, bootstrap_resamples=50),
    )
    config.data.pretraining_tokens = 16
    headline = work(config, run, tmp_path)
    assert headline["kl"] is json.loads((tmp_path / "evaluation.json").read_text())["kl"] is None
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [row["kl"] for row in rows] == [None, None, None]


def test_text_longer_than_the_context_is_refused_before_anything_is_generated(
    run: RunFolder, tiny_llama: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=ModelConfig(base=str(tiny_llama), device="cpu"))
    config.data.pretraining_tokens = 513
    with pytest.raises(ValueError, match=r"data\.pretraining_tokens=513 is more than the model's context of 512"):
        work(config, run, tmp_path)
    assert not list(tmp_path.iterdir())
