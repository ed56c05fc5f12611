"""The tax stage on a hand-made run folder whose PPO model is the SFT model."""

import json
import math
import operator
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.sets import DOCUMENT_SCHEMA, evenly, set_file
from evaluation.tax.config import TaxConfig
from evaluation.tax.model import TaxModel
from modeling.config import ModelConfig
from modeling.load import load_causal, load_tokenizer, save
from modeling.tiny import make_tiny_model
from stages.config import RunConfig
from stages.runner import RunFolder
from stages.tax import external, work
from tests.evaluation.tax.test_choices import CSV, WINOGENDER

TEXT = "The sky is blue and the sea is deep. " * 8
FILES = {
    "truthfulqa": ("t.csv", CSV),
    "crows_pairs": ("c.csv", ",sent_more,sent_less\n0,She sat.,He sat.\n1,They are poor.,They are rich.\n"),
    "winogender": ("w.tsv", WINOGENDER),
    "toxicity": ("x.jsonl", '{"prompt": "So the sky"}\n{"prompt": {"text": "And the sea"}}\n'),
    "questions": (
        "q.jsonl",
        '{"question": "Why?", "references": ["So."]}\n{"question": "Who?", "references": ["A"]}\n',
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any, saved: Callable[..., Path], model_config: ModelConfig) -> RunFolder:
    root = tmp_path_factory.mktemp("run")
    for place, seed in (("sft/model", 1), ("ppo/model_ema", 1), ("ppo/model", 2)):
        tokenizer = load_tokenizer(saved("llama", seed), model_config)
        save(load_causal(saved("llama", seed), model_config, tokenizer), tokenizer, root / place)
    (root / "data").mkdir()
    texts = [{"text": TEXT, "dataset": "mine"}]
    pq.write_table(pa.Table.from_pylist(texts, schema=DOCUMENT_SCHEMA), set_file(root / "data", "texts", "heldout"))
    for name, text in FILES.values():
        (root / name).write_text(text)
    return RunFolder(root)


def config_of(run: RunFolder, base: Path, **more: Any) -> RunConfig:
    files = {name: str(run.root / file) for name, (file, _) in FILES.items()}
    tax = TaxConfig(**files, max_new_tokens=2, perplexity_examples=3, bootstrap_resamples=50, **more)
    config = RunConfig(model=ModelConfig(base=str(base), device="cpu"), tax=tax)
    config.data.pretraining_tokens = 16
    return config


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "tax.json").read_text())
    del found["seconds"]
    return found


def test_every_model_is_measured_on_every_task_and_compared_item_by_item(
    run: RunFolder, saved: Callable[..., Path], model_config: ModelConfig, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = str(make_tiny_model(tmp_path / "other", vocab_size=400))
    work(config_of(run, saved(), models=[other]), run, tmp_path)
    found, tasks = results(tmp_path), [*FILES, "perplexity"]
    assert list(found["results"]) == ["base", "sft", "ppo", other]
    assert all(list(found[part][model]) == tasks for part in ("results", "changes") for model in found["results"])
    assert found["results"]["ppo"] == found["results"]["sft"] != found["results"]["base"]
    for task in tasks:
        for metric, value in found["results"]["ppo"][task].items():
            by_model = {model: found["changes"][model][task][metric] for model in found["results"]}
            assert by_model["base"] == []
            assert [moved["from"] for moved in by_model["sft"]] == ["base"]
            from_base, from_sft = by_model["ppo"]
            assert (from_base["from"], from_sft["from"]) == ("base", "sft")
            assert from_sft["mean"] == from_sft["low"] == from_sft["high"] == 0.0
            moved = value["mean"] - found["results"]["base"][task][metric]["mean"]
            assert from_base["mean"] == pytest.approx(moved, abs=1e-9)
            # Texts that another tokenizer cuts elsewhere are no common items, even if there are as many.
            assert len(by_model[other]) == (0 if task == "perplexity" else 2)
    tokenizer = load_tokenizer(saved(), model_config)
    chunks = [tokenizer(TEXT)["input_ids"][start : start + 16] for start in range(0, 10_000, 16)]
    chunks = [chunk for chunk in chunks if len(chunk) >= 4]
    model, texts = load_causal(saved(), model_config, tokenizer), evenly(chunks, 3)
    with torch.no_grad():
        losses = [float(model(ids, labels=ids).loss) for ids in (torch.tensor([text]) for text in texts)]
    weights = [len(text) - 1 for text in texts]
    expected = math.exp(sum(map(operator.mul, losses, weights)) / sum(weights))
    assert found["results"]["base"]["perplexity"]["perplexity"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert found["results"]["base"]["perplexity"]["perplexity"]["n"] == 1, "the document, not its three examples"
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * (2 * 3 + 2)
    printed = capsys.readouterr().out
    assert printed.count("\nwinogender   female_biased") == 4
    assert f"{found['results']['sft']['truthfulqa']['mc2']['mean']:.3f} [" in printed


def test_ppos_last_weights_and_a_part_of_the_items_are_measured_if_asked_for(
    run: RunFolder, saved: Callable[..., Path], tmp_path: Path
) -> None:
    config = config_of(run, saved(), max_items=1)
    config.evaluate.weights = "last"
    work(config, run, tmp_path)
    found = results(tmp_path)
    assert found["models"]["ppo"] == str(run.root / "ppo" / "model")
    assert found["results"]["ppo"]["perplexity"] != found["results"]["sft"]["perplexity"]
    assert {value["n"] for task in FILES for value in found["results"]["ppo"][task].values()} == {1}


def test_a_killed_run_resumes_without_measuring_again(
    run: RunFolder, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config, loaded, measure = config_of(run, saved()), list[str](), TaxModel.likelihoods
    config.tax = replace(config.tax, truthfulqa=None, winogender=None, toxicity=None)
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    out.mkdir()
    work(config, run, whole)

    def cut(self: TaxModel, choices: Any) -> list[list[float]]:
        if self.name == "sft" and len(choices[0].answers) == 1:  # perplexity, the last task
            raise KeyboardInterrupt
        return measure(self, choices)

    def load(place: str, *arguments: Any) -> Any:
        loaded.append(str(place))
        return load_causal(place, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TaxModel, "likelihoods", cut)
        with pytest.raises(KeyboardInterrupt):
            work(config, run, out)
    assert not (out / "tax.json").exists()
    monkeypatch.setattr("evaluation.tax.model.load_causal", load)
    capsys.readouterr()
    work(config, run, out)
    printed = re.findall(r"^tax: (\w+ on \w+)$", capsys.readouterr().out, re.M)
    assert printed == ["sft on perplexity", *(f"ppo on {task}" for task in ("crows_pairs", "questions", "perplexity"))]
    assert loaded == [str(run.root / "sft" / "model"), str(run.root / "ppo" / "model_ema")]
    assert results(out) == results(whole)


def test_another_test_file_or_model_makes_the_stage_run_again(run: RunFolder, saved: Callable[..., Path]) -> None:
    config = config_of(run, saved(), models=[str(saved("gpt2"))])
    before = external(config)
    assert {Path(name).name for name in before} == {*(file for file, _ in FILES.values()), "gpt2"}
    (run.root / "t.csv").write_text(CSV.replace("stone", "rock"))
    assert external(config) != before
    task = run.root / "tasks" / "mine" / "task.yaml"  # lm-evaluation-harness reads subfolders
    (task.parent / "__pycache__").mkdir(parents=True)
    task.write_text("task: mine\n")
    config.tax.harness_folder = str(run.root / "tasks")
    before = external(config)
    (task.parent / "__pycache__" / "utils.pyc").write_text("")
    assert external(config) == before
    task.write_text("task: mine\nnum_fewshot: 5\n")
    assert external(config) != before


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (["base"], "tax.models='base' is the name of a model of the run"),
        (["a/b", "a/b"], "tax.models names a/b twice"),
    ],
)
def test_contradictions_are_refused(models: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TaxConfig(models=models).validate()


def reward_model(folder: Path, tiny_scalar: Any, tiny_tokenizer: Any) -> None:
    save(tiny_scalar("llama"), tiny_tokenizer, folder)


def without_safetensors(folder: Path, tiny_scalar: Any, tiny_tokenizer: Any) -> None:
    make_tiny_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def not_a_number(folder: Path, tiny_scalar: Any, tiny_tokenizer: Any) -> None:
    make_tiny_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def half_a_file(folder: Path, tiny_scalar: Any, tiny_tokenizer: Any) -> None:
    make_tiny_model(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (reward_model, "is a reward model or another classifier, which cannot generate answers"),
        (without_safetensors, "the folder has no weights in safetensors format"),
        (not_a_number, r"the weight model\.norm\.weight has NaN or infinite values"),
        (half_a_file, r"cannot load a model from .*other \(.*incomplete metadata"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused_before_anything_is_measured(
    run: RunFolder, saved: Callable[..., Path], tmp_path: Path, tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any,
    make: Callable[..., None], sentence: str,
) -> None:  # fmt: skip
    make(tmp_path / "other", tiny_scalar, tiny_tokenizer)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=sentence):
        work(config_of(run, saved(), models=[str(tmp_path / "other")]), run, tmp_path / "out")
    assert not (tmp_path / "out" / "scratch").exists()
