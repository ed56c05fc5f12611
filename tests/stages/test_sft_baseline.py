"""The baseline's stage on a tiny model: chosen by loss, then by a reward model that comes later, without training
again.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import evaluation.sft_baseline
from data.records import Demonstration
from data.sets import DOCUMENT_SCHEMA, TEXT_SPLITS, set_file
from data.tokenize import pretraining_chunks
from modeling.accelerator import make_accelerator
from modeling.config import ModelConfig
from modeling.load import load_scalar, load_tokenizer, save
from modeling.models import initialize_head
from stages import evaluate, manifest, sft, sft_baseline
from stages.config import RunConfig, parse_config
from stages.manifest import stage_digest
from stages.runner import RunFolder, prepare
from tests.conftest import enliven
from tests.cuts import Cut, contents
from tests.sets import write_set

SETTINGS = (
    "--run_name", "run", "--sft_baseline.learning_rate", "0.02", "--sft_baseline.scoring.answers_per_prompt", "2",
    "--sft_baseline.scoring.bootstrap_resamples", "50", "--sft_baseline.scoring.max_prompts", "6",
)  # fmt: skip


def config_of(root: Path, *more: str) -> RunConfig:
    given = ["--config", "configs/smoke.yaml", "--runs_folder", str(root), *SETTINGS, *more]
    return parse_config("test", "", given)[0]


def finish(folder: Path) -> None:
    """A manifest of what is in the folder."""
    manifest.Manifest(
        stage=folder.name, fingerprint="by hand", config={}, inputs={}, outputs=manifest.output_records(folder),
        headline={}, seed=0, world_size=1, device="cpu", started="", ended="", seconds=0.0,
    ).write(folder)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with data and the baseline, without a reward model."""
    root = tmp_path_factory.mktemp("runs")
    folder = root / "run" / "data"
    folder.mkdir(parents=True)
    for number, (name, split) in enumerate(itertools.product(("sft", "rm", "rl"), ("train", "valid", "test"))):
        asked = [
            Demonstration(prompt=f"{colour} {number}.{n}: name it", completion=f"It is {colour}.", user_id=f"user {n}")
            for n in range(4)
            for colour in ("red", "green", "blue")
        ]
        write_set(folder, name, split, asked)  # type: ignore[arg-type]
    texts = pa.Table.from_pylist([{"text": "The sky is blue. " * 20, "dataset": "mine"}], schema=DOCUMENT_SCHEMA)
    for split in TEXT_SPLITS:
        pq.write_table(texts, set_file(folder, "texts", split))
    finish(folder)
    sft_baseline.work(config_of(root), force=False)
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it for one test, with the same times of the files."""
    shutil.copytree(trained, tmp_path / "runs")
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs")


def finish_reward(runs: Path, tiny_llama: Path, seed: int) -> None:
    """A finished reward stage, with a random model."""
    folder = runs / "run" / "reward"
    shutil.rmtree(folder, ignore_errors=True)
    own = ModelConfig(base=str(tiny_llama), device="cpu")
    tokenizer = load_tokenizer(tiny_llama, own)
    model = enliven(load_scalar(tiny_llama, own, tokenizer), seed)
    initialize_head(model, seed)
    model.config.score_bias = 0.5
    save(model, tokenizer, folder / "model")
    finish(folder)


def test_the_pretraining_mix_draws_from_every_document(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.preflight.check_before_training", lambda *_: None)
    data, documents = runs / "run" / "data", ["red " * 900, "green " * 900, "blue " * 900]
    texts = pa.Table.from_pylist([{"text": text, "dataset": "mine"} for text in documents], schema=DOCUMENT_SCHEMA)
    pq.write_table(texts, set_file(data, "texts", "train"))
    config, shares = config_of(runs), list[int]()
    accelerator = make_accelerator("cpu")
    base, sets = sft.prepare(config, config.sft, RunFolder(runs / "run"), accelerator)
    for document in documents:
        own = pretraining_chunks(base.tokenizer, [document], config.data.pretraining_tokens)
        assert len(own) > len(sets.train)
        shares.append(sum(chunk in own for chunk in sets.chunks) - len(own))
    assert shares == [0, 0, 0]
    assert not sft.prepare(config, config.sft_baseline, RunFolder(runs / "run"), accelerator)[1].chunks


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_without_a_reward_model_the_epoch_of_least_loss_is_saved(trained: Path) -> None:
    folder = trained / "run" / "sft_baseline"
    found = rows(folder, "epochs.jsonl")
    least = min(found, key=lambda row: row["valid_loss"])["epoch"]
    assert json.loads((folder / "choice.json").read_text())["by"] == "valid_loss"
    assert [row["epoch"] for row in found if row["chosen"]] == [least]
    assert len(found) == 3
    AutoModelForCausalLM.from_pretrained(folder / "model")
    assert not (folder / "answers.jsonl").exists()
    assert sorted(path.name for path in (trained / "run" / "sft_baseline_epochs").glob("*")) == [
        "epoch-01.safetensors", "epoch-02.safetensors", "epoch-03.safetensors", "manifest.json", "metrics.jsonl",
        "tensorboard", "timings.jsonl",
    ], "the Trainer's checkpoints are gone"  # fmt: skip


def test_a_reward_model_that_comes_later_scores_the_epochs_without_training_again(
    runs: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sft.train.ResumableTrainer", None)  # training would fail
    run, folder = runs / "run", runs / "run" / "sft_baseline"
    chosen = set()
    for seed in range(2):
        finish_reward(runs, tiny_llama, seed)
        sft_baseline.work(config_of(runs), force=False)
        found, answers = rows(folder, "epochs.jsonl"), rows(folder, "answers.jsonl")
        means = {
            epoch: sum(row["score"] for row in answers if row["epoch"] == epoch) / (len(answers) / 3)
            for epoch in (1, 2, 3)
        }
        assert {row["epoch"]: row["score"]["mean"] for row in found} == pytest.approx(means)
        best = max(means, key=lambda epoch: means[epoch])
        assert [row["epoch"] for row in found if row["chosen"]] == [best]
        assert json.loads((folder / "choice.json").read_text())["by"] == "reward_score"
        assert all(" 1." in row["prompt"] for row in answers), "prompts of sft/valid, the second set"
        chosen.add((best, (folder / "model" / "model.safetensors").read_bytes()))
    assert len({epoch for epoch, _ in chosen}) > 1, "the reward model decides"
    assert len({epoch for epoch, _ in chosen}) == len({weights for _, weights in chosen})
    # A score is what plain transformers gives to the text, less the bias.
    tokenizer = AutoTokenizer.from_pretrained(run / "reward" / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "reward" / "model").eval()
    checked = [row for row in answers if row["ended"]][:4] + [row for row in answers if not row["ended"]][:4]
    for row in checked:
        asked = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + row["answer"]
        ids = tokenizer(text + tokenizer.eos_token * row["ended"], return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            assert model(**ids).logits.item() - 0.5 == pytest.approx(row["score"], abs=1e-4)
    # Nothing has changed since; then only the scoring's settings.
    capsys.readouterr()
    sft_baseline.work(config_of(runs), force=False)
    assert "sft_baseline: unchanged" in capsys.readouterr().out
    sft_baseline.work(config_of(runs, "--sft_baseline.scoring.max_prompts", "4"), force=False)
    printed = capsys.readouterr().out
    assert "sft_baseline_epochs: unchanged" in printed
    assert {row["score"]["n"] for row in rows(folder, "epochs.jsonl")} == {4}


def test_scoring_that_is_killed_goes_on_where_it_was_and_ends_the_same(
    runs: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_reward(runs, tiny_llama, 0)
    folder = runs / "run" / "sft_baseline"
    load, loaded = evaluation.sft_baseline.load_epoch, list[str]()

    def cut(path: Path, model: Any) -> None:
        if path.name == "epoch-03.safetensors":
            raise Cut
        load(path, model)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.sft_baseline, "load_epoch", cut)
        with pytest.raises(Cut):
            sft_baseline.work(config_of(runs), force=False)
    partial = folder.with_name("sft_baseline.partial")
    assert len(list(partial.glob("scratch/epoch-0[12]/*.rank-0.jsonl"))) == 2
    sampled = evaluation.sft_baseline.AnswerSampler.answers

    def counted(sampler: Any, *given: Any) -> Any:
        before = {path: path.read_bytes() for path in sampler.scratch.glob("*.jsonl")}
        found = sampled(sampler, *given)
        if not any(before.values()):
            loaded.append(sampler.scratch.name)
        return found

    monkeypatch.setattr(evaluation.sft_baseline.AnswerSampler, "answers", counted)
    sft_baseline.work(config_of(runs), force=False)
    assert loaded == ["epoch-03"], "finished answers are not sampled again"
    cut_off = {name: content for name, content in contents(folder).items() if name != "manifest.json"}
    sft_baseline.work(config_of(runs), force=True)
    assert cut_off == {name: content for name, content in contents(folder).items() if name != "manifest.json"}


def test_a_base_that_is_this_runs_baseline_is_refused(trained: Path) -> None:
    place = trained / "run" / "sft_baseline" / "model"
    with pytest.raises(ValueError, match="is a result of this run, which would train it again and again"):
        config_of(trained, "--model.base", str(place))


def test_answers_that_would_not_fit_the_context_are_refused_before_training(runs: Path) -> None:
    shutil.rmtree(runs / "run" / "sft_baseline_epochs")
    config = config_of(runs, "--sft_baseline.scoring.max_new_tokens", "500")
    with pytest.raises(ValueError, match=r"with sft_baseline\.scoring\.max_new_tokens=500 \(longest prompt"):
        sft_baseline.work(config, force=False)
    assert not (runs / "run" / "sft_baseline_epochs.partial" / "metrics.jsonl").exists()


def test_a_baseline_whose_epochs_or_reward_model_were_replaced_is_refused_as_an_input(
    runs: Path, tiny_llama: Path
) -> None:
    """As another stage would read it."""
    from stages.outdated import outdated

    finish_reward(runs, tiny_llama, 0)
    sft_baseline.work(config_of(runs), force=False)
    assert outdated(runs / "run", ["sft_baseline"], {}) == []
    config, unnamed = config_of(runs), config_of(runs)
    config.evaluate.models = ["sft_baseline"]
    for one in (config, unnamed):
        assert evaluate.external(one) == {"sft_baseline": stage_digest(runs / "run" / "sft_baseline")}
        compared = evaluate.models(one, RunFolder(runs / "run"), "base")
        assert [model.name for model in compared] == ["ppo", "sft_baseline", "sft", "base"]
    finish_reward(runs, tiny_llama, 1)
    assert evaluate.external(unnamed) == {}, "one that does not fit is left out unless it is named"
    assert [model.name for model in evaluate.models(unnamed, RunFolder(runs / "run"), "base")] == ["ppo", "sft", "base"]
    with pytest.raises(ValueError, match=r"older result of the reward stage: run `make sft_baseline` again$"):
        outdated(runs / "run", ["sft_baseline"], {})
    with pytest.raises(ValueError, match=r"was made from an older result of the reward stage"):
        prepare(replace(evaluate.STAGE, after=()), config, RunFolder(runs / "run"), force=False)
    shutil.rmtree(runs / "run" / "sft_baseline")
    assert evaluate.external(unnamed) == {}
    with pytest.raises(ValueError, match="holds no finished result: run `make sft_baseline` first"):
        evaluate.external(config)
