"""A run on two processes equals the run on one: the same episodes, advantages, metrics and weights, with the work
divided.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file, save_file

from modeling.accelerator import make_accelerator
from modeling.run import Run
from modeling.tracking import read_metrics
from ppo.config import PPOConfig
from ppo.experience import Experience, Rollout, Scores
from ppo.reward_terms import RewardTerm
from ppo.trainer import PPOData, PPOTrainer
from tests.ppo.conftest import ALONE, Chain, small
from tests.ppo.toy import ask, doubled, toy_chain

TABLE = [0.0, 0.5, 1.0, -1.0, 0.3, -0.3, 0.8, -0.6, 0.1, 0.2]
PROMPTS = [ask(2, 3), ask(4), ask(5, 6, 7, 8), ask(9, 2, 4)]
TEXTS = [[2 + (3 * k + j) % 8 for j in range(length)] for k, length in enumerate((3, 3, 3, 14, 3, 14, 3, 14))]
"""Every minibatch takes all of them; sorted by length and dealt out, one process gets fewer tokens than the other."""
EXACT, COUNTED = 1e-9, 1e-6
"""Of float64 sums in another order, which Adam divides by gradients that may be 1e-4 of the largest; of numbers divided
by a count in float32.
"""


class RecordingTrainer(PPOTrainer):
    """Keeps the first roll-out, and counts the response tokens of all passes through the four models."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.experience: Experience | None = None
        self.passed = 0
        models = self.models
        for model in (models.policy, models.reference, models.value, models.rewards.scorers[0].model):
            model.encoder.register_forward_pre_hook(self.count)

    def count(self, encoder: Any, given: Any) -> None:
        self.passed += sum(given[0].lengths)

    def advantages(self, scores: Scores, rollout: Rollout) -> Experience:
        experience = super().advantages(scores, rollout)
        self.experience = self.experience or experience
        return experience


def run(chain: Chain, config: PPOConfig, accelerator: Accelerator, out: Path, saved: Path) -> None:
    """Trains, and saves this process's episodes and trained weights."""
    models = doubled(chain.models(rewards=config.rewards))
    trainer = RecordingTrainer(config, models, chain.tokenizer, PPOData(PROMPTS, TEXTS), Run(accelerator, 0, out))
    average = trainer.train()
    assert trainer.experience is not None
    rollout = trainer.experience.rollout
    found = {
        "ranks": torch.tensor(
            [
                accelerator.process_index,
                accelerator.num_processes,
                torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
            ]
        ),
        "tokens_passed": torch.tensor(trainer.passed),
        "lengths": torch.tensor(rollout.lengths),
        "advantages": trainer.experience.advantages_R,
        "responses": torch.tensor([token for response in rollout.ids for token in response]),
    }
    weights = {"policy": models.policy_parameters, "value": models.value_parameters, "average": average.average}
    found |= {f"{part}/{name}": weight.detach() for part, named in weights.items() for name, weight in named.items()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, saved)


def in_two_processes(chain: Chain, config: PPOConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator("cpu")
    assert accelerator.num_processes == 2
    run(chain, config, accelerator, folder / "out", folder / f"{accelerator.process_index}.safetensors")


def episodes(found: dict[str, torch.Tensor], name: str) -> list[list[float]]:
    return [part.tolist() for part in found[name].split(found["lengths"].tolist())]


def test_two_processes_do_what_one_does(tmp_path: Path):
    chain = toy_chain(tmp_path / "stages", TABLE)
    config = small(
        total_episodes=8, batch_size=8, minibatch_size=4, max_tokens_per_micro_batch=20, ptx_coef=2.0,
        ptx_examples_per_episode=2, max_new_tokens=8,
        max_grad_norm=0.5, kl_placement="loss", kl_coef=0.2, score_scaling="running", score_clip=1.5,
        missing_eos_penalty=0.5,
        inner_epochs=2, rewards=[RewardTerm(), RewardTerm("length", -0.1)],
    )  # fmt: skip
    (tmp_path / "two").mkdir()
    # Before the other run: forked processes inherit accelerate's state, which would say that there is one process.
    debug_launcher(in_two_processes, (chain, config, tmp_path / "two"), num_processes=2)
    run(chain, config, ALONE, tmp_path / "one" / "out", tmp_path / "one.safetensors")
    one = load_file(tmp_path / "one.safetensors")
    two = [load_file(tmp_path / "two" / f"{rank}.safetensors") for rank in range(2)]

    assert one["ranks"].tolist() == [0, 1, 1]
    assert [part["ranks"].tolist() for part in two] == [[0, 2, 2], [1, 2, 2]]
    assert [len(part["lengths"]) for part in two] == [4, 4]
    # Each token is in one process's passes, as often as in those of the process alone.
    assert sum(int(part["tokens_passed"]) for part in two) == int(one["tokens_passed"])
    assert len({int(part["tokens_passed"]) for part in two}) == 2, (
        "both have the same number of tokens, so unequal shares are not tried"
    )
    assert two[0]["lengths"].tolist() != two[1]["lengths"].tolist()

    for name in ("responses", "advantages"):
        # Episodes of a minibatch are dealt out in turn.
        halves = [episodes(part, name) for part in two]
        dealt = [halves[number % 2][number // 2] for number in range(8)]
        for ours, alone in zip(dealt, episodes(one, name), strict=True):
            assert ours == pytest.approx(alone, abs=EXACT, rel=EXACT), name
    mean = sum(float(part["advantages"].sum()) for part in two)
    assert mean == pytest.approx(0, abs=1e-9)
    assert abs(float(two[0]["advantages"].mean())) > 0.01, "whitened by each process for itself"

    start = {name: p.detach() for name, p in chain.models().policy_parameters.items()}
    moved = max(float((one[f"policy/{name}"] - p).abs().max()) for name, p in start.items())
    assert moved > 1e-3
    for part in two:
        worst = max(float((part[name] - one[name]).abs().max()) for name in one if "/" in name)
        assert worst < EXACT * moved, f"weights are off by {worst / moved:.1e} of the largest move"
    rows = [read_metrics(tmp_path / name / "out" / "metrics.jsonl") for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 1
    for alone, ours in zip(*rows, strict=True):
        assert alone.keys() == ours.keys()
        for name in (name for name in alone if "second" not in name):
            assert ours[name] == pytest.approx(alone[name], rel=COUNTED, abs=COUNTED), name
