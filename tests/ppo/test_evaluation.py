"""Evaluations on held-out prompts: their numbers against plain models, and that they change nothing in training."""

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

import ppo.evaluation
import ppo.trainer
from data.records import Demonstration, Prompt
from data.sets import set_file, set_schema
from data.tokenize import count_prompt_tokens
from modeling.generation import Generation, NativeGenerator
from modeling.run import Run
from modeling.tiny import CONTEXT_LENGTH
from ppo.actor_critic import ActorCritic
from ppo.config import HeldOutSettings, PPOConfig
from ppo.ema import MovingAverage
from ppo.evaluation import Answer, PeriodicEvaluation, held_out_prompts, summary
from ppo.monitors import MonitorSettings, StoppedRunError
from ppo.trainer import PPOData, PPOTrainer
from tests.fakes import FakeAccelerator
from tests.ppo.conftest import ALONE, CHUNKS, PROMPTS, Chain, as_ranked, small

ASKED = [
    *(
        Demonstration(prompt=f"Say {word}", completion=f"{word}, {word}!")
        for word in ("cat", "river", "snow", "a longer thing")
    ),
    *PROMPTS[:2],
]
BOTH = pytest.mark.parametrize("adapter", ["lora", "none"])


def asking(**changes: Any) -> PPOConfig:
    """An evaluation of the last weights after every iteration."""
    return small(held_out=HeldOutSettings(**{"every": 1, "weights": "last"} | changes))


@dataclass
class Held:
    """A chain's models and how to evaluate them."""

    chain: Chain
    models: ActorCritic
    average: MovingAverage

    @staticmethod
    def of(chain: Chain) -> "Held":
        """With fresh models, and an average that holds the SFT model's weights."""
        models = chain.models()
        return Held(chain, models, MovingAverage(models.policy_parameters, 0.9))

    def move(self) -> None:
        """Changes the policy, but not the average."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.models.policy_parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    def evaluation(
        self, folder: Path, run: Run | None = None, prompts: Any = ASKED, **settings: Any
    ) -> PeriodicEvaluation:
        """The evaluation of a new trainer; `settings` are those of ppo.held_out."""
        data, run = PPOData(PROMPTS, CHUNKS, prompts), replace(run or Run(ALONE, 0), out=folder)
        return PPOTrainer(asking(**settings), self.models, self.chain.tokenizer, data, run).evaluation

    def numbers(self, folder: Path, iteration: int = 0, **changes: Any) -> dict[str, float]:
        """The metrics of a new trainer's evaluation."""
        return self.evaluation(folder, **changes).evaluate(self.average, iteration)


Heard = list[tuple[list[int], Generation]]


def heard(monkeypatch: pytest.MonkeyPatch, evaluation: PeriodicEvaluation) -> Heard:
    """Fills with (prompt ids, response) as they are sampled, by this evaluation or any other."""
    kind, found = type(evaluation.trainer.generator), Heard()
    generate = kind.generate

    def listening(engine: Any, model: Any, ids: Any, *rest: Any, **named: Any) -> list[Generation]:
        responses: list[Generation] = generate(engine, model, ids, *rest, **named)
        if len(ids) > 2:  # not the trial of a new trainer's generator
            found.extend(zip(ids, responses, strict=True))
        return responses

    monkeypatch.setattr(kind, "generate", listening)
    return found


@BOTH
def test_numbers_are_those_of_plain_models(
    chains: Callable[[str], Chain], adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain = chains(adapter)
    held = Held.of(chain)
    held.move()
    evaluation = held.evaluation(tmp_path, responses_per_prompt=2, temperature=0.8)
    said = heard(monkeypatch, evaluation)
    numbers = evaluation.evaluate(held.average, 0)

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
            ours = (held.models.policy.causal(row).logits[0] / 0.8).log_softmax(-1)
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
    chains: Callable[[str], Chain], adapter: str, precision: Any, tmp_path: Path
):
    held = Held.of(replace(chains(adapter), config=replace(chains(adapter).config, precision=precision)))
    numbers = held.numbers(tmp_path)
    assert numbers["held_out_kl"] == numbers["held_out_kl_se"] == 0.0
    held.move()
    assert held.numbers(tmp_path / "moved")["held_out_kl"] != 0


@BOTH
def test_an_evaluation_changes_no_weights_and_no_random_state(
    chains: Callable[[str], Chain], adapter: str, tmp_path: Path
):
    held = Held.of(chains(adapter))
    held.move()
    parameters = held.models.policy_parameters | held.models.value_parameters
    evaluation = held.evaluation(tmp_path, weights="ema")
    before = {name: p.detach().clone() for name, p in parameters.items()}
    averages = {name: value.clone() for name, value in held.average.average.items()}
    trained, state = [p.requires_grad for p in parameters.values()], torch.get_rng_state()
    evaluation.evaluate(held.average, 0)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert all(torch.equal(value, averages[name]) for name, value in held.average.average.items())
    assert [p.requires_grad for p in parameters.values()] == trained
    assert all(p.grad is None for p in parameters.values())
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
def test_either_the_last_weights_or_the_moving_average_are_evaluated(
    chains: Callable[[str], Chain], adapter: str, tmp_path: Path
):
    held = Held.of(chains(adapter))
    start = held.numbers(tmp_path / "start")
    held.move()
    assert held.numbers(tmp_path / "ema", weights="ema") == start
    assert held.numbers(tmp_path / "last", weights="last")["held_out_score"] != start["held_out_score"]


def test_answers_depend_on_seed_and_prompt_alone(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = Held.of(chains("lora"))
    evaluation = held.evaluation(tmp_path / "a", responses_per_prompt=2)
    said = heard(monkeypatch, evaluation)
    assert evaluation.evaluate(held.average, 1) == evaluation.evaluate(held.average, 2)
    held.numbers(tmp_path / "b", run=Run(ALONE, 1))
    held.numbers(tmp_path / "c", prompts=ASKED[::-1])
    responses = [response.ids for _, response in said]
    assert responses[0] != responses[1]
    assert responses[:12:2] != responses[24:30]
    assert responses[:12:2] == responses[30:36][::-1]


def test_two_processes_share_the_prompts_and_have_the_same_numbers(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = Held.of(chains("lora"))
    held.move()
    alone = held.numbers(tmp_path / "alone")
    # The processes run one after the other; `gathered` keeps what the first one has sent.
    gathered: list[Any] = []
    monkeypatch.setattr(ppo.evaluation, "from_main", lambda accelerator, make: make())
    monkeypatch.setattr(ppo.evaluation, "gather_object", lambda items: gathered.extend(items) or gathered)
    first, second = (held.evaluation(tmp_path / f"{rank}") for rank in range(2))
    for rank, half in enumerate((first, second)):
        half.trainer.accelerator = FakeAccelerator(rank, 2)
    said = heard(monkeypatch, first)
    with pytest.raises(KeyError):  # the second one's answers are not there yet
        first.evaluate(held.average, 0)
    found = [half.evaluate(held.average, 0) for half in (second, first)]
    assert len(said) == 3 * 3
    assert found[0] == found[1]
    # Other batches round differently.
    assert found[0] == pytest.approx(alone, abs=1e-4)


def test_evaluations_are_due_before_the_first_iteration_every_so_many_and_after_the_last(
    chains: Callable[[str], Chain], tmp_path: Path
):
    held = Held.of(chains("lora"))
    evaluation = held.evaluation(tmp_path, every=3)
    evaluation.trainer.config.total_episodes = 8 * 8
    assert [iteration for iteration in range(9) if evaluation.due(iteration)] == [0, 3, 6, 8]
    off = held.evaluation(tmp_path / "off", every=0, prompts=[])
    assert not any(off.due(iteration) for iteration in range(9))
    assert not (tmp_path / "off").exists()


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint_and_makes_the_later_ones_again(
    chains: Callable[[str], Chain], tmp_path: Path
):
    held = Held.of(chains("lora"))
    evaluation = held.evaluation(tmp_path)
    for iteration in range(3):
        evaluation.evaluate(held.average, iteration)
    written = (tmp_path / "held_out.jsonl").read_bytes()
    (tmp_path / "held_out.jsonl").write_bytes(written + b'{"step": 3, "held')
    for checkpoint in range(3):
        evaluation.trainer.progress.iteration = checkpoint
        again = PeriodicEvaluation(evaluation.trainer, ASKED)
        assert [row["step"] for row in again.rows] == list(range(checkpoint + 1))
        assert again.evaluate(held.average, checkpoint) == {}
        for iteration in range(checkpoint + 1, 3):
            again.evaluate(held.average, iteration)
        assert (tmp_path / "held_out.jsonl").read_bytes() == written
        assert [json.loads(line) for line in written.splitlines()] == again.rows


def test_without_demonstrations_there_is_no_judge(chains: Callable[[str], Chain], tmp_path: Path):
    held = Held.of(chains("lora"))
    for place, changes in {"plain": {"prompts": PROMPTS}, "off": {"judge": "none"}}.items():
        numbers = held.numbers(tmp_path / place, **changes)
        assert "held_out_score" in numbers
        assert not [name for name in numbers if "judge" in name]


def test_a_held_out_prompt_without_room_is_refused_before_anything_is_sampled(
    chains: Callable[[str], Chain], tmp_path: Path
):
    held = Held.of(chains("none"))
    long = Prompt(prompt="7" * CONTEXT_LENGTH, prompt_id="too-long")
    with pytest.raises(ValueError, match=r"prompt 'too-long' .* leaves no room for an answer"):
        held.evaluation(tmp_path, prompts=[*ASKED, long])
    assert not (tmp_path / "held_out.jsonl").exists()


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


def test_prompts_are_those_of_the_named_set_with_their_demonstrations(tmp_path: Path):
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


def test_a_run_that_is_evaluated_trains_to_the_same_bytes(chains: Callable[[str], Chain], tmp_path: Path):
    chain = chains("lora")
    for place, every in (("with", 1), ("without", 0)):
        config = small(held_out=HeldOutSettings(every=every), ptx_coef=1.0)
        chain.trainer(tmp_path / place, config, data=PPOData(PROMPTS, CHUNKS, ASKED if every else [])).train()
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


def test_a_monitor_stops_a_run_before_anything_of_the_iteration_is_saved(
    chains: Callable[[str], Chain], tmp_path: Path
):
    chain = chains("lora")
    config = small(total_episodes=32, learning_rate=0.1, monitors=MonitorSettings(max_kl=0.05))
    with pytest.raises(StoppedRunError, match=r"ppo\.monitors\.max_kl=0\.05"):
        chain.trainer(tmp_path, config).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    saved = sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").glob("checkpoint-????????"))
    assert rows[-1]["step"] == saved[-1] < 4
    assert rows[-1]["warnings"] == 0
    # It continues once the monitor only warns.
    config.monitors.kl = "warn"
    chain.trainer(tmp_path, config).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[saved[-1]]["warnings"] == 1


def test_the_monitors_of_a_resumed_run_see_no_rows_after_its_checkpoint(chains: Callable[[str], Chain], tmp_path: Path):
    """A run that is killed between an iteration's row and its checkpoint makes that row again."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kl": 1e6}\n')
    trainer = chains("lora").trainer(tmp_path, small(total_episodes=8))
    assert trainer.monitors.firing == {}
    trainer.train()


def test_the_decoder_is_chosen_for_the_longest_prompt_held_out_or_not(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain, asked = chains("none"), list[int]()
    monkeypatch.setattr(ppo.trainer, "generator_for", lambda *given: asked.append(given[2]) or NativeGenerator())
    lengths = count_prompt_tokens(chain.tokenizer, PROMPTS)
    short, long = PROMPTS[:1], [PROMPTS[lengths.index(max(lengths))]]
    for place, data in enumerate((PPOData(short, CHUNKS, short), PPOData(short, CHUNKS, long), PPOData(long, CHUNKS))):
        chain.trainer(tmp_path / str(place), small(), data=data)
    assert asked == [count + small().max_new_tokens for count in (lengths[0], max(lengths), max(lengths))]
    assert lengths[0] < max(lengths)
