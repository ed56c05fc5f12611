"""The reward stage, PPO and evaluation on two processes with sharded models (FSDP2), in each mode, leave the same bytes
as on two replicas.

make test-distributed
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages import data, evaluate, labels, ppo, reward, samples, sft
from stages.config import RunConfig, parse_config
from stages.runner import Stage, run_stage

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parents[2]
SMALL = (
    "--data.personal_data", "off", "--sft.max_train_examples", "16", "--samples.max_train_prompts", "16",
    "--samples.max_heldout_prompts", "12", "--reward.bias_demonstrations", "6",
    "--reward.learning_curve", "[0.5]",
    "--evaluate_reward.bootstrap_resamples", "50", "--ppo.total_episodes", "48", "--ppo.checkpoint_every", "1",
    "--ppo.held_out.every", "1",
    # Not a multiple of what each process gets, so that micro-batches are uneven.
    "--ppo.max_tokens_per_micro_batch", "300", "--reward.max_tokens_per_micro_batch", "300",
)  # fmt: skip
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
STEP, LAYER = ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": each_layer} for each_layer in ("false", "true"))
"""What `accelerate launch` sets with configs/accelerate/fsdp2.yaml, and with `fsdp_reshard_after_forward: true`."""
OFFLOADED = {**LAYER, "FSDP_OFFLOAD_PARAMS": "true"}
"""With fsdp2_offload.yaml."""
CHECKPOINTING = ("--reward.activation_checkpointing", "true", "--ppo.activation_checkpointing", "true")
RESULTS = ("metrics.jsonl", "held_out.jsonl", "scores.json", "accuracy.json", "evaluation.json")
TRAINING = (reward.STAGE, ppo.STAGE)
STAGES = (*TRAINING, evaluate.STAGE)


def arguments(root: Path, adapter: str) -> list[str]:
    """Once there is a reward model, PPO scores with it twice, the second time as a separate model."""
    made = root / "smoke" / "reward" / "model"
    twice = f"[{{kind: model}}, {{kind: model, path: {made}, name: again, weight: 0.5}}]"
    more = ["--ppo.rewards", twice] if made.is_dir() else []
    # Adapters on the top layer alone, so that the output of the layers below is cached.
    top = ["--model.lora.top_layers", "1"] if adapter == "lora" else []
    own = ["--runs_folder", str(root), "--model.adapter", adapter, *top, *more]
    return ["--config", "configs/smoke.yaml", *own, *SMALL]


def config_of(root: Path, adapter: str) -> RunConfig:
    return parse_config("test", "", arguments(root, adapter))[0]


def launch(
    stage: Stage, root: Path, adapter: str, processes: int, more: tuple[str, ...] = (), **environment: str
) -> str:
    """Runs a stage on several gloo processes, with `more` arguments; returns its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*command, "-m", f"stages.{stage.name}", *arguments(root, adapter), *more],
        cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def outputs(root: Path, stage: Stage) -> dict[str, bytes]:
    """Weights and metrics of a finished stage."""
    folder = root / "smoke" / stage.name
    names = [path for path in folder.rglob("*") if path.name in RESULTS]
    return {str(path.relative_to(folder)): path.read_bytes() for path in (*names, *folder.rglob("*.safetensors"))}


def metrics(root: Path, stage: Stage) -> list[dict[str, float]]:
    """The rows of a stage's metrics."""
    return [json.loads(line) for line in (root / "smoke" / stage.name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["none", "lora"])
def ranked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(adapter, a runs folder in which all is done that comes before the reward stage)."""
    root = tmp_path_factory.mktemp(request.param)
    for module in (data, sft, samples, labels):
        run_stage(module.STAGE, config_of(root, request.param))
    return request.param, root


def copied(root: Path, to: Path, *left_out: str) -> Path:
    """A copy of a runs folder without some of its stages."""
    shutil.copytree(root, to, ignore=shutil.ignore_patterns(*left_out))
    return to


@pytest.fixture(scope="module")
def replicated(ranked: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the three stages by two replicas."""
    root = copied(ranked[1], tmp_path_factory.mktemp("replicated") / "runs")
    for stage in STAGES:
        said = launch(stage, root, ranked[0], 2)
        if stage in TRAINING:
            assert f"{stage.name}: 2 processes, models replicated" in said
    return root


@pytest.mark.parametrize(
    ("mode", "log", "more"),
    [(STEP, "gathered per step", ()), (OFFLOADED, "gathered per layer, offloaded", CHECKPOINTING)],
    ids=["step", "layer"],
)
def test_sharded_training_leaves_the_bytes_of_replicated_training(
    ranked: tuple[str, Path], replicated: Path, tmp_path: Path, mode: dict[str, str], log: str, more: tuple[str, ...]
) -> None:
    """Also if activations are recomputed in the backward pass, where weights are gathered again."""
    adapter, sharded = ranked[0], copied(ranked[1], tmp_path / "sharded")
    for stage in STAGES:
        said = launch(stage, sharded, adapter, 2, more, **mode)
        expected, found = outputs(replicated, stage), outputs(sharded, stage)
        assert expected.keys() == found.keys()
        if stage in TRAINING:
            assert f"{stage.name}: 2 processes, models sharded (FSDP2, {log})" in said, "the models were not sharded"
            assert any(name.endswith(".safetensors") for name in expected)
        assert [name for name in expected if expected[name] != found[name]] == []


def interrupt(root: Path, adapter: str) -> None:
    """Starts PPO on two processes with sharded models, and stops it after its first checkpoint."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [*command, "-m", "stages.ppo", *arguments(root, adapter)],
        cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | LAYER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = root / "smoke" / "ppo.partial" / "checkpoints" / "checkpoint-00000001"
    while not first.is_dir():
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) != 0


def test_a_run_sharded_per_layer_resumes_bit_for_bit_per_step_and_on_one_process(
    ranked: tuple[str, Path], replicated: Path, tmp_path: Path
) -> None:
    adapter, cut = ranked[0], copied(replicated, tmp_path / "cut", "ppo", "evaluate")
    interrupt(cut, adapter)
    states = (cut / "smoke" / "ppo.partial" / "checkpoints").glob("checkpoint-*/state/*")
    assert {path.suffix for path in states} == {".safetensors"}, "a pickle"
    alone = copied(cut, tmp_path / "alone")
    launch(ppo.STAGE, cut, adapter, 2, **STEP)
    assert outputs(cut, ppo.STAGE) == outputs(replicated, ppo.STAGE)
    config = config_of(alone, adapter)
    config.ppo.rewards = config_of(cut, adapter).ppo.rewards  # their paths are part of the fingerprint
    run_stage(ppo.STAGE, config)
    expected, found = (metrics(root, ppo.STAGE) for root in (replicated, alone))
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [1, 2, 3]
    for name in ("score", "kl", "policy_loss", "value_loss"):
        # Another order of summing; a text may differ where rounding moves a draw.
        assert found[1][name] == pytest.approx(expected[1][name], rel=0.05, abs=0.02), name


def test_one_process_and_two_agree_within_rounding(ranked: tuple[str, Path], replicated: Path, tmp_path: Path) -> None:
    """Sums over processes are rounded in another order, and Adam divides by gradients that may be small."""
    alone = copied(ranked[1], tmp_path / "alone")
    run_stage(reward.STAGE, config_of(alone, ranked[0]))
    for one, two in zip(metrics(alone, reward.STAGE), metrics(replicated, reward.STAGE), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
    models = [load_file(root / "smoke" / "reward" / "model" / "model.safetensors") for root in (alone, replicated)]
    for name, weight in models[0].items():
        assert float((weight - models[1][name]).abs().max()) < 1e-3, name
