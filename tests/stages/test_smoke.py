"""The whole chain as a user runs it, on a random model: every stage, nothing twice, killed and resumed, on two
processes.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data.files import read_rows
from modeling.tracking import read_metrics
from stages import pipeline
from stages.runner import STAGES, main

CONFIG = "configs/smoke.yaml"


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"RLHF_PTX_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--config", CONFIG, "--runs_folder", str(folder), *more]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the run's folder, what the pipeline printed)."""
    runs = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(pipeline.work, "stages.pipeline", "", arguments(runs, "--evaluate.bootstrap_resamples", "20"))
    return runs / "smoke", printed.getvalue()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--evaluate.judges", "[gold]", "--evaluate.gold.model", "{sft}"], "is not a reward model"),
        (["--evaluate.models", "[{reward}]"], "is a reward model or another classifier, which cannot generate answers"),
        (["--evaluate.models", "[sft_baseline]"], "run `make sft_baseline` first\n"),
        (
            ["--labels.labeler", "llm", "--labels.llm.endpoint", "http://127.0.0.1:9/v1", "--labels.llm.model", "m"],
            "the language model at http://127.0.0.1:9/v1 gives no usable reply: ",
        ),
        (
            ["--evaluate.judges", "[human]", "--evaluate.human.path", "{run}/data/counts.json"],
            "counts.json: expected an array of rows",
        ),
    ],
)
def test_an_evaluation_or_labeler_that_cannot_run_is_refused_before_anything_is_trained(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    root, _ = finished
    places = {"sft": root / "sft" / "model", "reward": root / "reward" / "model", "run": root}
    with pytest.raises(SystemExit) as ended:
        main(pipeline.work, "stages.pipeline", "", arguments(tmp_path, *(word.format(**places) for word in more)))
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "smoke").iterdir() if path.is_dir()] == ["data"]


def test_every_stage_leaves_a_manifest_and_the_headline_is_printed(finished: tuple[Path, str]):
    root, printed = finished
    for stage in STAGES:
        manifest = json.loads((root / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage
        assert manifest["seconds"] >= 0
        assert manifest["packages"]["torch"]
        assert manifest["outputs"], stage
        assert f"{stage}: done" in printed
    assert not list(root.glob("*.partial"))
    headline = json.loads((root / "evaluate" / "headline.json").read_text())
    with_interval = (
        "reward_accuracy_best_baseline", "reward_above_best_baseline", "win_rate", "win_rate_both_end",
        "win_rate_length_controlled", "win_rate_vs_best_of_n", "chrf_difference",
    )  # fmt: skip
    assert set(headline) == {
        *(f"{name}{end}" for name in with_interval for end in ("", "_low", "_high")),
        *("reward_accuracy", "kl", "perplexity_sft", "perplexity_ppo"),
        *("explained_variance", "seconds_before_evaluation"),
    }
    *_, third, second, last = [row["explained_variance"] for row in read_metrics(root / "ppo" / "metrics.jsonl")]
    assert headline["explained_variance"] == pytest.approx((third + second + last) / 3)
    models = json.loads((root / "evaluate" / "evaluation.json").read_text())["models"]
    fall = models["ppo"]["chrf"]["mean"] - models["sft"]["chrf"]["mean"]
    assert headline["chrf_difference"] == pytest.approx(fall, abs=1e-12)
    assert headline["chrf_difference_low"] <= headline["chrf_difference"] <= headline["chrf_difference_high"]
    assert headline["win_rate_low"] <= headline["win_rate"] <= headline["win_rate_high"]
    assert f"{headline['win_rate']:.1%}" in printed
    assert str(root / "report" / "index.html") in printed
    assert (root / "report" / "index.html").stat().st_size > 10_000
    assert (root / "report" / "report.md").is_file()


def test_ppo_samples_for_training_prompts_alone(finished: tuple[Path, str]):
    root, _ = finished
    asked = {json.loads(line)["prompt"] for line in (root / "ppo" / "samples.jsonl").read_text().splitlines()}
    known = {row["prompt"] for _, row in read_rows(root / "data" / "rl_train.parquet")}
    assert asked
    assert asked <= known


def test_no_user_is_in_two_splits_and_rl_has_api_prompts_alone(finished: tuple[Path, str]):
    root, _ = finished
    users: dict[str, set[str]] = {}
    for file in (root / "data").glob("*_*.parquet"):
        rows = [row for _, row in read_rows(file)]
        split = file.stem.split("_")[1]
        if "user_id" in rows[0]:
            users.setdefault(split, set()).update(row["user_id"] for row in rows)
        if file.stem.startswith("rl_"):
            assert {row["source"] for row in rows} == {"api"}
    assert set(users) == {"train", "valid", "test"}
    assert not users["train"] & users["test"]
    assert not users["train"] & users["valid"]
    assert not users["valid"] & users["test"]


def test_the_models_load_with_plain_transformers(finished: tuple[Path, str]):
    root, _ = finished
    for place in ("sft/model", "ppo/model", "ppo/model_ema"):
        AutoModelForCausalLM.from_pretrained(root / place)
    tokenizer = AutoTokenizer.from_pretrained(root / "reward" / "model")
    model = AutoModelForSequenceClassification.from_pretrained(root / "reward" / "model").eval()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.num_labels == 1
    everything = [row for _, row in read_rows(root / "data" / "sft_train.parquet")]
    rows = [everything[len(everything) * number // 16] for number in range(16)]
    scores = []
    for row in rows:
        messages = [{"role": "user", "content": row["prompt"]}]
        text = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            + row["completion"]
            + tokenizer.eos_token
        )
        with torch.no_grad():
            scores.append(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item())
    # The bias in the config is what makes the mean score of these demonstrations zero.
    assert sum(scores) / 16 == pytest.approx(model.config.score_bias, abs=1e-4)


def test_whoever_may_read_the_configs_may_read_the_weights(finished: tuple[Path, str]):
    """safetensors leaves them to their owner."""
    weights = list(finished[0].rglob("*.safetensors"))
    assert {file.parent.name for file in weights} >= {"model", "model_ema", "adapter", "adapter_ema"}
    assert {file.stat().st_mode & 0o777 for file in weights} == {
        (finished[0] / "sft" / "manifest.json").stat().st_mode & 0o777
    }


def test_nothing_runs_twice_unless_something_changed(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    root, _ = finished
    main(pipeline.work, "stages.pipeline", "", arguments(root.parent, "--evaluate.bootstrap_resamples", "10"))
    printed = capsys.readouterr().out
    assert [stage for stage in STAGES if f"{stage}: done" in printed] == ["evaluate", "report"]
    assert [stage for stage in STAGES if f"{stage}: unchanged" in printed] == list(STAGES[:-2])


def test_another_run_takes_what_would_be_the_same(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    root, _ = finished
    variant = arguments(root.parent, "--run_name", "variant", "--evaluate.bootstrap_resamples", "5")
    main(pipeline.work, "stages.pipeline", "", [*variant, "--reuse", str(root)], pipeline.OPTIONS)
    printed = capsys.readouterr().out
    assert [stage for stage in STAGES if f"{stage}: taken from {root / stage}" in printed] == list(STAGES[:-2])
    assert [stage for stage in STAGES if f"{stage}: done" in printed] == ["evaluate", "report"]
    with pytest.raises(SystemExit) as stopped:
        main(pipeline.work, "stages.pipeline", "", [*variant, "--reuse", str(root.parent)], pipeline.OPTIONS)
    assert stopped.value.code == 2
    assert f"--reuse {root.parent}: not a run folder with a finished data stage" in capsys.readouterr().err


@pytest.mark.slow
def test_ppo_runs_killed_at_any_moment_end_in_the_same_bytes(finished: tuple[Path, str], cache: Path):
    """A few of the kills of `make torture`."""
    root, _ = finished
    settings = ["--stages", "ppo", "--kills", "3", "--seed", "2", "--variants", "lora on two processes"]
    command = [sys.executable, "-m", "tests.torture", *settings, "--chain", str(root.parent)]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
    assert done.stdout.endswith("PASS\n")


@pytest.mark.slow
def test_two_processes_do_what_one_does(finished: tuple[Path, str], cache: Path, tmp_path: Path):
    root, _ = finished
    shutil.copytree(
        root, tmp_path / "smoke", ignore=shutil.ignore_patterns("reward", "ppo", "evaluate", "report", "tensorboard")
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    for stage in ("reward", "ppo"):
        command = [*launch, f"stages.{stage}", *arguments(tmp_path)]
        done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        manifest = json.loads((tmp_path / "smoke" / stage / "manifest.json").read_text())
        assert manifest["world_size"] == 2
    for place in ("reward/adapter/adapter_model.safetensors", "ppo/adapter/adapter_model.safetensors"):
        one, two = load_file(root / place), load_file(tmp_path / "smoke" / place)
        moved = max(float(value.abs().max()) for name, value in one.items() if "lora_B" in name)
        worst = max(float((one[name] - two[name]).abs().max()) for name in one)
        assert moved > 1e-3, "training moved nothing"
        assert worst < 0.02 * moved, (place, worst, moved)
    names = ("score", "kl", "policy_loss", "value_loss", "ptx_loss", "entropy", "length", "policy_grad_norm")
    rows = [
        [json.loads(line) for line in (place / "ppo" / "metrics.jsonl").read_text().splitlines()]
        for place in (root, tmp_path / "smoke")
    ]
    for one_row, two_row in zip(*rows, strict=True):
        for name in names:
            assert one_row[name] == pytest.approx(two_row[name], rel=2e-3, abs=2e-4), name
