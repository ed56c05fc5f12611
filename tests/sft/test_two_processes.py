"""SFT on two processes (gloo): the logged token accuracy and validation loss, and a run that is killed and resumed."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.tokenize import encode_completion, encode_prompt
from modeling.accelerator import make_accelerator
from modeling.config import ModelConfig
from modeling.run import Run
from modeling.tracking import Tracker
from sft.config import SFTConfig
from sft.resume import EpochOrder
from sft.train import Base, SFTData, train
from tests.sft.test_train import TRAIN, VALID, loss_by_hand
from tests.torture.work import Work

SEVEN, THREE = TRAIN[:7], VALID[:3]
SETTINGS = SFTConfig(epochs=2, batch_size=4, micro_batch_size=1, pretraining_fraction=0.0)


def correct_and_counted(model: Any, tokenizer: Any) -> torch.Tensor:
    """For each example, the answer tokens that the model predicts correctly and all of them."""
    counts = []
    for demonstration in SEVEN:
        prompt, answer = encode_prompt(tokenizer, demonstration), encode_completion(tokenizer, demonstration.completion)
        with torch.no_grad():
            predicted = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        counts.append([int((predicted == torch.tensor(answer)).sum()), len(answer)])
    return torch.tensor(counts)


def accuracies(counts: torch.Tensor, lengths: list[int]) -> list[float]:
    """Of each step: the mean over its two micro-batches of the share in the pair of examples that two processes read.

    Four pairs make an epoch of seven examples, so the first example is read again in the last.
    """
    found = []
    for epoch in range(SETTINGS.epochs):
        order = EpochOrder(lengths, SETTINGS.batch_size, 0)
        order.epoch = epoch
        indices = list(order)
        pairs = [counts[[*pair]].sum(0) for pair in zip(indices[::2], indices[1::2], strict=True)]
        shares = [float(correct / counted) for correct, counted in pairs]
        found += [sum(shares[:2]) / 2, sum(shares[2:]) / 2]
    return found


@pytest.mark.slow
def test_accuracy_and_validation_loss_count_the_tokens_of_all_processes_in_a_killed_run_too(
    tmp_path: Path, tiny_causal: Callable[[str], Any], tiny_tokenizer: Any, model_config: ModelConfig
) -> None:
    log = Tracker.log

    def exit_at_step_4(tracker: Tracker, step: int, numbers: dict[str, float]) -> None:
        if step == 4:
            os._exit(9)
        log(tracker, step, numbers)

    def run(name: str, model: Any, settings: SFTConfig, tracked: Any = log) -> list[int]:
        def do() -> None:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            Tracker.log = tracked  # type: ignore[method-assign]
            accelerator = make_accelerator("cpu")
            base = Base(model, tiny_tokenizer, model_config)
            train(settings, base, SFTData(SEVEN, THREE, []), Run(accelerator, 0, tmp_path / name))
            accelerator.end_training()

        work = Work(do, tmp_path / f"{name}.log", 2)
        work.wait(120)
        return work.codes

    # A model that predicts some of the tokens, and a learning rate too small to change a float32 weight.
    fit = replace(SETTINGS, epochs=6, learning_rate=5e-3)
    assert run("fit", tiny_causal("llama"), fit) == [0, 0], (tmp_path / "fit.log").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "fit" / "model")
    fixed = replace(SETTINGS, learning_rate=1e-30)
    assert run("whole", model, fixed) == [0, 0], (tmp_path / "whole.log").read_text()
    cautious = replace(fixed, checkpoint_minutes=0.0)
    assert 9 in run("killed", model, cautious, exit_at_step_4)
    # The checkpoint lies in the middle of the second epoch.
    assert (tmp_path / "killed" / "trainer" / "checkpoint-3" / "checksums.json").is_file()
    assert run("killed", model, cautious) == [0, 0], (tmp_path / "killed.log").read_text()

    whole, resumed = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed"))
    lengths = [
        len(encode_prompt(tiny_tokenizer, d)) + len(encode_completion(tiny_tokenizer, d.completion)) for d in SEVEN
    ]
    expected = accuracies(correct_and_counted(model.eval(), tiny_tokenizer), lengths)
    logged = [row["token_accuracy"] for row in map(json.loads, whole.splitlines()) if "token_accuracy" in row]
    assert logged == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 2, "steps differ, so that a wrong set of examples shows"
    assert resumed == whole
    losses = [row["valid_loss"] for row in map(json.loads, whole.splitlines()) if "valid_loss" in row]
    assert losses == pytest.approx([loss_by_hand(model, tiny_tokenizer, THREE)] * 2, rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_on_the_batches_of_one(
    tmp_path: Path, tiny_causal: Callable[[str], Any], tiny_tokenizer: Any, model_config: ModelConfig
) -> None:
    """Seven examples in batches of four: the last batch of an epoch is filled up alike."""
    settings = replace(SETTINGS, epochs=2, learning_rate=1e-3)

    def work(name: str) -> Any:
        def do() -> None:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            accelerator = make_accelerator("cpu")
            model = tiny_causal("llama")
            base = Base(model, tiny_tokenizer, model_config)
            train(settings, base, SFTData(SEVEN, THREE, []), Run(accelerator, 0, tmp_path / name))
            accelerator.end_training()

        return do

    for name, count in (("one", 1), ("two", 2)):
        started = Work(work(name), tmp_path / f"{name}.log", count)
        started.wait(120)
        assert started.codes == [0] * count, (tmp_path / f"{name}.log").read_text()
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for alone, shared in zip(one, two, strict=True):
        for key in alone.keys() & {"loss", "valid_loss", "grad_norm"}:
            assert shared[key] == pytest.approx(alone[key], rel=1e-4), (alone["step"], key)
