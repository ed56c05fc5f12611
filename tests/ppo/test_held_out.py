"""Evaluations on held-out prompts say what is so, the same whoever makes them, and change nothing."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.records import Demonstration, Prompt
from data.sets import set_file, set_schema
from modeling.generation import Generation, NativeGenerator
from modeling.processes import Processes
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.guards import GuardSettings, StoppedRunError
from ppo.held_out import Answer, HeldOut, HeldOutSettings, held_out_prompts, summary
from ppo.models import PPOModels
from ppo.train import train
from tests.ppo.conftest import CHUNKS, PROMPTS, TEAM, Chain, as_ranked, small

ASKED = [
    *(
        Demonstration(prompt=f"Say {word}", completion=f"{word}, {word}!")
        for word in ("cat", "river", "snow", "a longer thing")
    ),
    *PROMPTS[:2],
]
BOTH = pytest.mark.parametrize("adapter", ["lora", "none"])


def asking(**changes: Any) -> PPOConfig:
    """Six prompts, four of them with an answer, after every iteration."""
    settings = HeldOutSettings(**{"every": 1, "weights": "last"} | changes)
    return small(held_out=settings)


def held(
    chain: Chain,
    models: PPOModels,
    folder: Path,
    team: Processes = TEAM,
    prompts: Any = ASKED,
    seed: int = 0,
    **changes: Any,
) -> HeldOut:
    generator = NativeGenerator()
    return HeldOut(
        prompts, asking(**changes), chain.config, models, chain.tokenizer, seed, team, folder, generator=generator
    )


def moved(models: PPOModels) -> PPOModels:
    """With a policy that has left the SFT model."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in models.policy_parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return models


def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Generation]]:
    """Fills with (prompt ids, response) as they are sampled."""
    plain, found = NativeGenerator.generate, list[tuple[list[int], Generation]]()

    def listening(generator: NativeGenerator, model: Any, ids: Any, *rest: Any) -> list[Generation]:
        responses = plain(generator, model, ids, *rest)
        found.extend(zip(ids, responses, strict=True))
        return responses

    monkeypatch.setattr(NativeGenerator, "generate", listening)
    return found


@BOTH
def test_numbers_are_what_plain_models_say_of_the_answers(
    chains: Callable[[str], Chain], adapter: str, tmp_path: Path, monkeypatch: Any
):
    chain = chains(adapter)
    models, said = moved(chain.models()), heard(monkeypatch)
    evaluation = held(chain, models, tmp_path, responses_per_prompt=2, temperature=0.8)
    numbers = evaluation.evaluate(MovingAverage(models.policy_parameters, 0.9), 0)

    scorer = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    reference = AutoModelForCausalLM.from_pretrained(chain.sft / "model").eval()
    texts, parts = chain.tokenizer, []
    assert len(said) == 12
    for ids, response in said:
        row = torch.tensor([ids + response.ids])
        with torch.no_grad():
            ranked = torch.tensor([ids + as_ranked(texts, response)])
            score = float(scorer.score(scorer.model(ranked).last_hidden_state[0, -1])) - 0.25
            theirs = (reference(row).logits[0] / 0.8).log_softmax(-1)
            with models.as_policy() as policy:
                ours = (policy(row).logits[0] / 0.8).log_softmax(-1)
        places = range(len(ids) - 1, row.shape[1] - 1)
        kl = sum(float(ours[at, token] - theirs[at, token]) for at, token in zip(places, response.ids, strict=True))
        parts.append(
            {"score": score, "kl": kl, "length": len(response.ids), "ended": response.ids[-1] == texts.eos_token_id}
        )
    for name in ("score", "kl", "length", "ended"):
        by_prompt = [(parts[2 * k][name] + parts[2 * k + 1][name]) / 2 for k in range(6)]
        # float32 sums over a few dozen tokens of logits of order 10.
        assert numbers[f"held_out_{name}"] == pytest.approx(statistics.fmean(by_prompt), abs=1e-4)
        if name in ("score", "kl"):
            assert numbers[f"held_out_{name}_se"] == pytest.approx(statistics.stdev(by_prompt) / math.sqrt(6), abs=1e-4)
    assert abs(numbers["held_out_kl"]) > 0.01
    assert {name for name in numbers if "judge" in name} == {"held_out_judge", "held_out_judge_se"}


@BOTH
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_before_the_first_update_the_kl_is_exactly_zero(
    chains: Callable[[str], Chain],
    adapter: str,
    precision: Any,
    tmp_path: Path,
):
    chain = replace(chains(adapter), config=replace(chains(adapter).config, precision=precision))
    models = chain.models()
    average = MovingAverage(models.policy_parameters, 0.9)
    numbers = held(chain, models, tmp_path).evaluate(average, 0)
    assert numbers["held_out_kl"] == numbers["held_out_kl_se"] == 0.0
    moved(models)
    assert held(chain, models, tmp_path / "moved").evaluate(average, 0)["held_out_kl"] != 0


@BOTH
def test_an_evaluation_leaves_everything_as_it_was(chains: Callable[[str], Chain], adapter: str, tmp_path: Path):
    models = moved(chains(adapter).models())
    average = MovingAverage(models.policy_parameters, 0.9)
    moved(models)
    parameters = models.policy_parameters | models.value_parameters
    before = {name: p.detach().clone() for name, p in parameters.items()}
    averages = {name: value.clone() for name, value in average.average.items()}
    trained, state = [p.requires_grad for p in parameters.values()], torch.get_rng_state()
    held(chains(adapter), models, tmp_path, weights="ema").evaluate(average, 0)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert all(torch.equal(value, averages[name]) for name, value in average.average.items())
    assert [p.requires_grad for p in parameters.values()] == trained
    assert all(p.grad is None for p in parameters.values())
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
def test_weights_are_the_last_or_the_moving_average_as_is_said(
    chains: Callable[[str], Chain], adapter: str, tmp_path: Path
):
    chain = chains(adapter)
    models = chain.models()
    average = MovingAverage(models.policy_parameters, 0.9)
    start = held(chain, models, tmp_path / "start", weights="last").evaluate(average, 0)
    moved(models)
    last, ema = (
        held(chain, models, tmp_path / weights, weights=weights).evaluate(average, 0) for weights in ("last", "ema")
    )
    assert ema == start
    assert last["held_out_score"] != start["held_out_score"]


def test_answers_are_drawn_alike_each_time_and_by_the_seed(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: Any
):
    chain = chains("lora")
    models, said = chain.models(), heard(monkeypatch)
    average = MovingAverage(models.policy_parameters, 0.9)
    evaluation = held(chain, models, tmp_path / "a", responses_per_prompt=2)
    first, again = evaluation.evaluate(average, 1), evaluation.evaluate(average, 2)
    assert first == again
    held(chain, models, tmp_path / "b", seed=1).evaluate(average, 1)
    held(chain, models, tmp_path / "c", prompts=ASKED[::-1]).evaluate(average, 1)
    responses = [response.ids for _, response in said]
    assert responses[0] != responses[1]
    assert responses[:12:2] != responses[24:30]
    # A prompt's answers are its own, wherever it stands.
    assert responses[:12:2] == responses[30:36][::-1]


@dataclass
class Half:
    """One of two processes, which run one after the other: what each hands over lies on a shelf."""

    rank: int
    shelf: dict[int, list[Any]]
    device: torch.device = TEAM.device

    def share(self, items: list[Any]) -> list[Any]:
        return items[self.rank :: 2]

    def gather(self, items: list[Any]) -> list[Any]:
        self.shelf[self.rank] = items
        return [item for rank in sorted(self.shelf) for item in self.shelf[rank]]

    def from_main(self, make: Callable[[], Any]) -> Any:
        return make()


def test_two_processes_share_the_prompts_and_have_the_same_numbers(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: Any
):
    chain, shelf = chains("lora"), dict[int, list[Any]]()
    models = moved(chain.models())
    average = MovingAverage(models.policy_parameters, 0.9)
    alone = held(chain, models, tmp_path / "alone").evaluate(average, 0)
    said = heard(monkeypatch)
    first, second = (held(chain, models, tmp_path / f"{rank}", Half(rank, shelf)) for rank in range(2))  # type: ignore[arg-type]
    with pytest.raises(KeyError):  # the second one's answers are not there yet
        first.evaluate(average, 0)
    found = [half.evaluate(average, 0) for half in (second, first)]
    assert len(said) == 3 * 3
    assert found[0] == found[1]
    # Rows stand beside others than they do alone, which rounds them otherwise.
    assert found[0] == pytest.approx(alone, abs=1e-4)


def test_it_is_time_before_the_first_iteration_every_so_many_and_after_the_last(
    chains: Callable[[str], Chain], tmp_path: Path
):
    chain = chains("lora")
    models = chain.models()
    evaluation = held(chain, models, tmp_path, every=3)
    evaluation.config.total_episodes = 8 * 8
    assert [iteration for iteration in range(9) if evaluation.due(iteration)] == [0, 3, 6, 8]
    assert not any(held(chain, models, tmp_path / "off", every=0, prompts=[]).due(iteration) for iteration in range(9))
    assert not (tmp_path / "off").exists()


def test_a_resumed_run_keeps_the_rows_of_its_checkpoint_and_makes_the_later_ones_again(
    chains: Callable[[str], Chain], tmp_path: Path
):
    chain = chains("lora")
    models = chain.models()
    average = MovingAverage(models.policy_parameters, 0.9)
    evaluation = held(chain, models, tmp_path)
    for iteration in range(3):
        evaluation.evaluate(average, iteration)
    written = (tmp_path / "held_out.jsonl").read_bytes()
    (tmp_path / "held_out.jsonl").write_bytes(written + b'{"step": 3, "held')
    for checkpoint in range(3):
        again = HeldOut(
            ASKED, asking(), chain.config, models, chain.tokenizer, 0, TEAM, tmp_path, resume_after=checkpoint
        )
        assert [row["step"] for row in again.rows] == list(range(checkpoint + 1))
        assert again.evaluate(average, checkpoint) == {}
        for iteration in range(checkpoint + 1, 3):
            again.evaluate(average, iteration)
        assert (tmp_path / "held_out.jsonl").read_bytes() == written
        assert [json.loads(line) for line in written.splitlines()] == again.rows


def test_without_answers_to_judge_by_there_is_no_judge(chains: Callable[[str], Chain], tmp_path: Path):
    models = chains("lora").models()
    average = MovingAverage(models.policy_parameters, 0.9)
    for place, changes in {"plain": {"prompts": PROMPTS}, "off": {"judge": "none"}}.items():
        numbers = held(chains("lora"), models, tmp_path / place, **changes).evaluate(average, 0)
        assert "held_out_score" in numbers
        assert not [name for name in numbers if "judge" in name]


def test_a_prompt_without_room_is_refused_before_anything_is_sampled(chains: Callable[[str], Chain], tmp_path: Path):
    chain = chains("none")
    models = chain.models()
    models.value.model.config.max_position_embeddings = 12
    with pytest.raises(ValueError, match="do not fit the value model's context of 12"):
        held(chain, models, tmp_path)


def test_a_prompts_answers_are_averaged_before_its_error_is_taken():
    def answer(score: float, judge: float | None) -> Answer:
        return Answer(score, 0.0, 3.0, 1.0, 0.0, judge)

    numbers = summary(
        [[answer(1, None), answer(3, None)], [answer(5, 0.2), answer(7, 0.4)], [answer(0, 0.1), answer(2, 0.2)]]
    )
    assert numbers["held_out_score"] == pytest.approx(3.0)
    assert numbers["held_out_score_se"] == pytest.approx(statistics.stdev([2, 6, 1]) / math.sqrt(3))
    assert numbers["held_out_judge"] == pytest.approx((0.3 + 0.15) / 2)
    assert numbers["held_out_judge_se"] == pytest.approx(statistics.stdev([0.3, 0.15]) / math.sqrt(2))


def put(data: Path, name: Any, prompts: list[Prompt]) -> None:
    schema = set_schema(name, conversational=False)
    rows = [{field: getattr(prompt, field, None) for field in schema.names} for prompt in prompts]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), set_file(data, name, "valid"))


def test_prompts_are_those_of_the_set_that_is_named_with_their_answers_where_they_have_one(tmp_path: Path):
    with_answers = [prompt for prompt in ASKED if isinstance(prompt, Demonstration)]
    put(tmp_path, "sft", with_answers)
    put(tmp_path, "rl", [Prompt.of(with_answers[2]), PROMPTS[0]])
    assert held_out_prompts(tmp_path, HeldOutSettings(every=1)) == with_answers
    assert held_out_prompts(tmp_path, HeldOutSettings(every=1, prompts_from="rl")) == [with_answers[2], PROMPTS[0]]


def test_an_empty_validation_split_is_refused_only_where_it_is_needed(tmp_path: Path):
    assert held_out_prompts(tmp_path, HeldOutSettings()) == []
    with pytest.raises(
        ValueError,
        match=r"ppo\.held_out\.every=2 needs two held-out prompts.*sft set has 0: raise data\.valid_fraction",
    ):
        held_out_prompts(tmp_path, HeldOutSettings(every=2))


@BOTH
def test_a_run_that_is_evaluated_trains_to_the_same_bytes(chains: Callable[[str], Chain], adapter: str, tmp_path: Path):
    chain = chains(adapter)
    for place, every in (("with", 1), ("without", 0)):
        config = small(held_out=HeldOutSettings(every=every), ptx_coef=1.0)
        asked = ASKED if every else []
        train(
            config,
            chain.config,
            chain.models(),
            chain.tokenizer,
            PROMPTS,
            CHUNKS,
            0,
            TEAM,
            tmp_path / place,
            held_out_prompts=asked,
        )
    ours, theirs = (sorted((tmp_path / place / "checkpoints").rglob("*.safetensors")) for place in ("with", "without"))
    assert len(ours) == len(theirs) > 5
    for one, other in zip(ours, theirs, strict=True):
        left, right = load_file(one), load_file(other)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), one.name
    assert (tmp_path / "with" / "metrics.jsonl").read_bytes() == (tmp_path / "without" / "metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "with" / "held_out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert not (tmp_path / "without" / "held_out.jsonl").exists()


def test_a_guard_stops_a_run_before_anything_of_the_iteration_is_saved(chains: Callable[[str], Chain], tmp_path: Path):
    chain = chains("lora")
    config = small(total_episodes=32, learning_rate=0.1, guards=GuardSettings(max_kl=0.05))
    with pytest.raises(StoppedRunError, match=r"ppo\.guards\.max_kl=0\.05"):
        train(config, chain.config, chain.models(), chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    saved = sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").glob("checkpoint-????????"))
    assert rows[-1]["step"] == saved[-1] < 4
    assert rows[-1]["warnings"] == 0
    # It goes on from there once the guard only warns.
    config.guards.kl = "warn"
    train(config, chain.config, chain.models(), chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[saved[-1]]["warnings"] == 1
