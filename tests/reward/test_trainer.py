"""Training of the reward model: the same gradient whatever the split, a lower loss, and a saved model that others can
use.

pytest tests/reward/test_trainer.py
"""

import math
import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import reduce
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling.accelerator import divided, from_main, make_accelerator, share_of
from modeling.adapters import add_lora, merged
from modeling.config import LoraSettings
from modeling.load import save
from modeling.models import initialize_head, plain, reward_model
from modeling.run import Run
from modeling.tracking import read_metrics
from reward.batches import RankingExample
from reward.config import RewardConfig
from reward.scoring import score_all
from reward.trainer import RewardTrainer
from tests.cuts import Cut
from tests.fakes import FakeAccelerator

ALONE = FakeAccelerator()
GOOD, BAD = 200, 300


def some_examples(seed: int, count: int) -> list[RankingExample]:
    """Ragged prompts with 2 to 5 answers; one with more of token GOOD is better than one with fewer, and equal numbers
    tie.
    """
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        answers = [
            [chance.choice([GOOD, BAD]) for _ in range(chance.randint(1, 7))] + [2] for _ in range(chance.randint(2, 5))
        ]
        marks = [answer.count(GOOD) for answer in answers]
        preference_mask_KK = torch.tensor([[high > low for low in marks] for high in marks])
        made.append(
            RankingExample(
                [chance.randrange(3, 512) for _ in range(chance.randint(1, 12))], answers, preference_mask_KK
            )
        )
    return made


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def trainer_of(
    model: Any,
    items: list[RankingExample],
    config: RewardConfig | None = None,
    out: Path | None = None,
    seed: int = 0,
    watched: dict[str, list[RankingExample]] | None = None,
    accelerator: Accelerator = ALONE,
) -> RewardTrainer:
    """A trainer of a fresh model without autocast."""
    return RewardTrainer(config or RewardConfig(), reward_model(model), items, Run(accelerator, seed, out), watched)


def plain_loss(model: Any, batch: list[RankingExample]) -> torch.Tensor:
    """The paper's formula over plain forwards: the mean over prompts that have a pair of the mean over their pairs."""
    means = []
    for item in batch:
        scores = [model(input_ids=torch.tensor([item.prompt + answer])).logits[0, 0] for answer in item.answers]
        terms = [
            -torch.nn.functional.logsigmoid(scores[i] - scores[j])
            for i, j in item.preference_mask_KK.nonzero().tolist()
        ]
        if terms:
            means.append(torch.stack(terms).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize("max_tokens", [1, 100, 10**6])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_any_micro_batch_gives_the_loss_and_gradient_of_the_whole_batch(
    tiny_scalar: Callable[[str], Any], architecture: str, max_tokens: int
) -> None:
    model = tiny_scalar(architecture)
    tied = RankingExample([5, 6], [[7, 2], [8, 2]], torch.zeros(2, 2, dtype=torch.bool))
    batch = [*some_examples(0, 6), tied]
    numbers = trainer_of(model, batch, RewardConfig(max_tokens_per_micro_batch=max_tokens)).gradient(batch)
    ours = gradients(model)
    model.zero_grad()
    expected = plain_loss(model, batch)
    expected.backward()
    assert numbers["loss"] == pytest.approx(expected.item(), rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients(model).values())
    assert largest > 0.01
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, atol=5e-5 * largest, rtol=1e-3, msg=name)


def test_accuracy_counts_pairs(tiny_scalar: Callable[[str], Any]) -> None:
    model, batch = tiny_scalar("llama"), some_examples(1, 8)
    numbers = trainer_of(model, batch).gradient(batch)
    right = pairs = 0
    for item, scores in zip(batch, score_all(reward_model(model), batch, 10**6, ALONE), strict=True):
        for i, j in item.preference_mask_KK.nonzero().tolist():
            pairs += 1
            right += scores[i] > scores[j]
    assert (numbers["pairs"], numbers["accuracy"]) == (pairs, pytest.approx(right / pairs))
    assert 0 < right < pairs


@pytest.mark.parametrize("max_tokens", [1, 80, 10**6])
def test_scores_come_in_the_order_of_their_elements(tiny_scalar: Callable[[str], Any], max_tokens: int) -> None:
    model, items = tiny_scalar("llama"), some_examples(2, 9)
    items.append(items[0])
    found = score_all(reward_model(model), items, max_tokens, ALONE)
    with torch.no_grad():
        for item, scores in zip(items, found, strict=True):
            alone = [model(input_ids=torch.tensor([item.prompt + answer])).logits.item() for answer in item.answers]
            assert scores == pytest.approx(alone, abs=3e-5)


def in_two_processes(model: Any, batch: list[RankingExample], folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator("cpu")
    assert accelerator.num_processes == 2
    trainer = trainer_of(model, batch, RewardConfig(max_tokens_per_micro_batch=100), accelerator=accelerator)
    numbers = trainer.gradient(batch)
    summed = gradients(model)
    scores = score_all(reward_model(model), batch, 100, accelerator)
    # With one example, the second process has nothing to do and must take part all the same.
    lone = trainer.gradient(batch[:1])
    total = reduce(torch.tensor([1.0 + accelerator.process_index]), "sum")
    told = from_main(accelerator, lambda: f"from {accelerator.process_index}")
    try:
        from_main(accelerator, lambda: int("no number"))
        refused = False
    except ValueError:
        refused = True
    rank = accelerator.process_index
    found = {
        "numbers": numbers, "gradients": summed, "scores": scores, "lone": lone, "total": total.item(), "told": told,
        "refused": refused, "shared": share_of(accelerator, range(5)),
    }  # fmt: skip
    torch.save(found, folder / f"{rank}.pt")


def test_two_processes_give_what_one_gives(tiny_scalar: Callable[[str], Any], tmp_path: Path) -> None:
    batch = some_examples(3, 7)
    model = tiny_scalar("llama")
    one = trainer_of(model, batch).gradient(batch)
    one_gradients = gradients(model)
    model.zero_grad()
    lone = trainer_of(model, batch).gradient(batch[:1])
    model.zero_grad()
    scores = score_all(reward_model(model), batch, 10**6, ALONE)
    AcceleratorState._reset_state(reset_partial_state=True)  # the forked processes would inherit that they are alone
    debug_launcher(in_two_processes, (model, batch, tmp_path), num_processes=2)

    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    largest = max(float(gradient.abs().max()) for gradient in one_gradients.values())
    assert largest > 0.01
    for rank, part in enumerate(found):
        assert set(part["gradients"]) == set(one_gradients)
        for name, gradient in part["gradients"].items():
            torch.testing.assert_close(gradient, one_gradients[name], atol=2e-5 * largest, rtol=1e-3, msg=name)
        assert part["numbers"] == pytest.approx(one, rel=1e-5)
        assert part["lone"] == pytest.approx(lone, rel=1e-5)
        assert [
            row == pytest.approx(expected, abs=3e-5) for row, expected in zip(part["scores"], scores, strict=True)
        ] == [True] * len(batch)
        assert (part["total"], part["told"], part["refused"]) == (3.0, "from 0", True)
        assert part["shared"] == [[0, 2, 4], [1, 3]][rank]


def test_a_process_alone_shares_with_nobody() -> None:
    assert share_of(ALONE, [1, 2, 3]) == [1, 2, 3]
    assert from_main(ALONE, lambda: 7) == 7
    assert divided(FakeAccelerator(0, 4), 12, "ppo.batch_size") == 3
    with pytest.raises(ValueError, match=r"ppo\.batch_size=10 is not divisible by the 4 processes"):
        divided(FakeAccelerator(0, 4), 10, "ppo.batch_size")


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_short_training_lowers_the_loss_and_its_numbers_are_logged(
    tiny_scalar: Callable[[str], Any], tmp_path: Path, adapter: str
) -> None:
    model = tiny_scalar("llama")
    initialize_head(model, seed=0)
    if adapter == "lora":
        torch.manual_seed(0)
        model = add_lora(model, LoraSettings(rank=4, alpha=8))
        plain(model).score.requires_grad_(True)
    frozen = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    items = [item for item in some_examples(4, 30) if item.pairs]
    config = RewardConfig(epochs=5, learning_rate=1e-2, batch_size=8)
    trainer_of(model, items, config, tmp_path).train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps = 5 * math.ceil(len(items) / 8)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["epoch"] for row in rows] == sorted(row["epoch"] for row in rows)
    first, last = rows[0], rows[-4:]
    assert sum(row["loss"] for row in last) / 4 < 0.5 * first["loss"]
    assert sum(row["accuracy"] for row in last) / 4 > 0.8 > first["accuracy"]
    for step, row in enumerate(rows):
        # Cosine from the peak to a tenth of it.
        expected = 1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
        assert row["learning_rate"] == pytest.approx(expected, rel=1e-6)
        assert row["grad_norm"] > 0
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name


def test_a_run_depends_on_its_seed_and_on_no_other_random_numbers(
    tiny_scalar: Callable[[str], Any], tmp_path: Path
) -> None:
    items = [item for item in some_examples(5, 12) if item.pairs]
    losses = []
    for name, seed, noise in (("a", 1, 5), ("b", 1, 6), ("c", 2, 5)):
        torch.manual_seed(noise)
        random.seed(noise)
        config = RewardConfig(epochs=2, learning_rate=1e-3, batch_size=4)
        trainer_of(tiny_scalar("llama"), items, config, tmp_path / name, seed).train()
        losses.append([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_every_element_is_seen_once_an_epoch(
    tiny_scalar: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item for item in some_examples(6, 14) if item.pairs]
    seen: list[list[int]] = []

    trainer = trainer_of(tiny_scalar("llama"), items, RewardConfig(epochs=2, batch_size=5))
    compute = trainer.gradient
    monkeypatch.setattr(
        trainer, "gradient", lambda batch: seen.append([items.index(item) for item in batch]) or compute(batch)
    )
    trainer.train()
    half = len(seen) // 2
    epochs = [list(chain(*seen[:half])), list(chain(*seen[half:]))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(len(items)))] * 2
    assert epochs[0] != epochs[1]


def test_gradients_are_clipped_to_their_norm(
    tiny_scalar: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item for item in some_examples(7, 8) if item.pairs]
    norms: list[float] = []
    original = torch.optim.Adam.step

    def spy(optimizer: Any, *arguments: Any) -> Any:
        norms.append(
            math.sqrt(
                sum(float(p.grad.double().pow(2).sum()) for group in optimizer.param_groups for p in group["params"])
            )
        )
        return original(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    trainer_of(tiny_scalar("llama"), items, RewardConfig(max_grad_norm=0.01)).train()
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(
    tiny_scalar: Callable[[str], Any],
) -> None:
    model = tiny_scalar("llama")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    before = model.model.embed_tokens.weight.detach().clone()
    items = [item for item in some_examples(8, 6) if item.pairs]
    with pytest.raises(ValueError, match=r"reward, step 1: loss is nan: lower reward\.learning_rate"):
        trainer_of(model, items, RewardConfig(learning_rate=1.0)).train()
    assert torch.equal(model.model.embed_tokens.weight, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_reward_model_trained_with_adapters_scores_the_same_when_anybody_loads_it(
    tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any, tmp_path: Path, architecture: str
) -> None:
    # What stages/reward.py does: train, take the mean score of demonstrations as bias, fold the adapter in, save.
    model = tiny_scalar(architecture)
    initialize_head(model, seed=0)
    model = add_lora(model, LoraSettings(rank=4, alpha=8))
    plain(model).score.requires_grad_(True)
    items = [item for item in some_examples(9, 12) if item.pairs]
    trainer = trainer_of(model, items, RewardConfig(epochs=2, learning_rate=1e-2, batch_size=4))
    trainer.train()
    demonstrations = [
        RankingExample(item.prompt, item.answers[:1], torch.zeros(1, 1, dtype=torch.bool)) for item in items
    ]
    raw = [row[0] for row in score_all(trainer.model, demonstrations, 1000, ALONE)]
    bias = sum(raw) / len(raw)
    assert abs(bias) > 0.01
    trainer.model.bias = plain(model).config.score_bias = bias
    centred = [row[0] for row in score_all(trainer.model, demonstrations, 1000, ALONE)]
    assert sum(centred) / len(centred) == pytest.approx(0.0, abs=1e-5)
    save(merged(model), tiny_tokenizer, tmp_path)

    theirs, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path).eval(),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    padded = tokenizer.pad(
        {"input_ids": [d.prompt + d.answers[0] for d in demonstrations]}, return_tensors="pt", padding_side="right"
    )
    with torch.no_grad():
        scores = theirs(**padded).logits[:, 0]
    assert theirs.config.score_bias == pytest.approx(bias)
    torch.testing.assert_close(scores - bias, torch.tensor(centred), atol=5e-5, rtol=0)


def test_after_each_epoch_watched_sets_are_looked_at_and_change_nothing(
    tiny_scalar: Callable[[str], Any], tmp_path: Path
) -> None:
    items = [item for item in some_examples(12, 14) if item.pairs]
    watched = {"train": items[:4], "valid": items[10:]}
    config = RewardConfig(epochs=3, learning_rate=3e-3, batch_size=4)
    runs = []
    for name, sets in (("a", None), ("b", watched)):
        model = tiny_scalar("llama")
        found = trainer_of(model, items[:10], config, tmp_path / name, watched=sets).train()
        runs.append((model, found, read_metrics(tmp_path / name / "metrics.jsonl")))
    (unwatched, nothing, rows), (model, epochs, watched_rows) = runs
    assert nothing == []
    assert all(torch.equal(a, b) for a, b in zip(unwatched.parameters(), model.parameters(), strict=True))
    assert [found["epoch"] for found in epochs] == [1, 2, 3]
    # The last look is at the weights as they are returned: each pair by hand.
    for name, sets in watched.items():
        right, losses = [], []
        for item, scores in zip(sets, score_all(reward_model(model), sets, 1000, ALONE), strict=True):
            margins = [scores[i] - scores[j] for i, j in item.preference_mask_KK.nonzero().tolist()]
            right += [margin > 0 for margin in margins]
            losses.append(sum(math.log(1 + math.exp(-margin)) for margin in margins) / len(margins))
        assert epochs[-1][name] == pytest.approx(
            {"accuracy": sum(right) / len(right), "loss": sum(losses) / len(losses)}, rel=1e-5
        )
    ends = [row for row in watched_rows if "valid_loss" in row]
    assert [row["epoch"] for row in ends] == [1, 2, 3]
    assert [row["valid_loss"] for row in ends] == [found["valid"]["loss"] for found in epochs]
    assert [row["step"] for row in ends] == [3, 6, 9]
    assert not any("valid_loss" in row for row in rows)


@pytest.mark.parametrize(("batching", "step"), [("prompts", 1), ("pairs", 4), ("prompts", 8)])
def test_a_killed_training_goes_on_from_its_last_step_and_ends_in_the_same_bytes(
    tiny_scalar: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batching: Literal["prompts", "pairs"],
    step: int,
) -> None:
    """With a checkpoint after each step, since the clock says each time that one is due."""
    items = [item for item in some_examples(12, 11) if item.pairs]
    config = RewardConfig(epochs=3, learning_rate=3e-3, batch_size=4, batching=batching, checkpoint_minutes=0)
    watched = {"valid": items[:3]}
    steps: list[int] = []

    compute = RewardTrainer.gradient

    def killed(trainer: RewardTrainer, batch: list[RankingExample]) -> dict[str, float]:
        steps.append(1)
        if len(steps) == step:
            raise Cut
        return compute(trainer, batch)

    def go_on(name: str) -> tuple[Any, list[dict[str, Any]]]:
        model = tiny_scalar("llama")
        return model, trainer_of(model, items, config, tmp_path / name, watched=watched).train()

    whole, epochs = go_on("whole")
    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "gradient", killed)
        with pytest.raises(Cut):
            go_on("killed")
        steps[:] = [0] * step  # no further kill
        torch.manual_seed(77)
        resumed, again = go_on("killed")
    assert len(steps) - step == len(read_metrics(tmp_path / "whole" / "metrics.jsonl")) - (step - 1), "no step twice"
    assert again == epochs
    assert [found["epoch"] for found in again] == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "killed" / "metrics.jsonl").read_bytes()


def test_shuffled_pairs_are_steps_of_as_many_comparisons_as_the_prompts_have(
    tiny_scalar: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item for item in some_examples(13, 12) if item.pairs]
    seen: list[list[RankingExample]] = []

    trainer = trainer_of(tiny_scalar("llama"), items, RewardConfig(batching="pairs", batch_size=4))
    compute = trainer.gradient
    monkeypatch.setattr(trainer, "gradient", lambda batch: seen.append(batch) or compute(batch))
    trainer.train()
    comparisons = sum(item.pairs for item in items)
    assert sum(len(batch) for batch in seen) == comparisons
    assert len(seen[0]) == round(4 * comparisons / len(items))
    wanted = sorted(
        (item.prompt, item.answers[i], item.answers[j])
        for item in items
        for i, j in item.preference_mask_KK.nonzero().tolist()
    )
    assert sorted((pair.prompt, *pair.answers) for batch in seen for pair in batch) == wanted
    # Prompts are mixed: pairs of one prompt do not stand together.
    assert len({tuple(pair.prompt) for pair in seen[0]}) > 2


@pytest.mark.parametrize("shared", [True, False])
def test_the_limit_of_a_micro_batch_counts_what_is_computed(tiny_scalar: Callable[[str], Any], shared: bool) -> None:
    model, batch = tiny_scalar("llama"), some_examples(15, 10)
    if not shared:
        model.model.shared_prefix_reason = "the test says so"
    trainer = trainer_of(model, batch, RewardConfig(max_tokens_per_micro_batch=100))
    passes: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, inputs, named: passes.append(int((named["input_ids"] != 0).sum())), with_kwargs=True
    )
    trainer.gradient(batch)
    answers = sum(len(answer) for item in batch for answer in item.answers)
    prompts = sum(len(item.prompt) * (1 if shared else len(item.answers)) for item in batch)
    assert sum(passes) == answers + prompts
    assert len(passes) > 2
    assert max(passes) <= 100


def test_activation_checkpointing_changes_no_bit_of_a_training(
    tiny_scalar: Callable[[str], Any], tmp_path: Path
) -> None:
    weights, layer_calls = [], []
    for checkpointing in (False, True):
        model, calls = tiny_scalar("gpt_neox"), []
        model.gpt_neox.layers[0].attention.register_forward_hook(lambda *given, calls=calls: calls.append(1))
        config = RewardConfig(activation_checkpointing=checkpointing, batch_size=4)
        trainer_of(model, some_examples(14, 8), config, tmp_path / str(checkpointing)).train()
        weights.append(list(model.parameters()))
        layer_calls.append(len(calls))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert layer_calls[1] > layer_calls[0]


def test_adam_has_the_configured_decays(tiny_scalar: Callable[[str], Any]) -> None:
    trainer = trainer_of(tiny_scalar("llama"), some_examples(3, 7))
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.95)}
    other = trainer_of(tiny_scalar("llama"), some_examples(3, 7), RewardConfig(adam_beta2=0.99))
    assert other.optimizer.param_groups[0]["betas"] == (0.9, 0.99)
