"""Launch commands on two processes: Slurm and accelerate, a process that dies or hangs, DeepSpeed.

make test-distributed
"""

import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages import data, labels, ppo, reward, samples, sft
from stages.runner import Stage, run_stage
from tests.distributed.test_sharded_stages import HERE, arguments, config_of, launch, outputs

pytestmark = pytest.mark.slow
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def before_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder in which all is done that comes before the reward stage."""
    root = tmp_path_factory.mktemp("before")
    for module in (data, sft, samples, labels):
        run_stage(module.STAGE, config_of(root, "lora"))
    return root


@pytest.fixture(scope="module")
def whole(before_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with reward stage and PPO by torchrun, undisturbed, with replicated models."""
    root = shutil.copytree(before_reward, tmp_path_factory.mktemp("whole") / "runs")
    for stage in (reward.STAGE, ppo.STAGE):
        launch(stage, root, "lora", 2)
    return root


@pytest.fixture
def before_ppo(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "runs", ignore=shutil.ignore_patterns("ppo"))


def same_bytes(root: Path, whole: Path, stage: Stage) -> None:
    expected, found = outputs(whole, stage), outputs(root, stage)
    assert any(name.endswith(".safetensors") for name in expected)
    assert [name for name in expected | found if expected.get(name) != found.get(name)] == []


SRUN = """#!/usr/bin/env bash
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & done
wait -n && wait -n
"""


def test_the_slurm_script_trains_on_two_machines_what_torchrun_trains_on_one(
    before_reward: Path, whole: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(before_reward, tmp_path / "runs")
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho 127.0.0.1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "GPUS": "1", "VENV": sys.prefix, "PORT": str(port)}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for stage in (reward.STAGE, ppo.STAGE):
        done = subprocess.run(
            ["configs/slurm/two_nodes.sbatch", f"stages.{stage.name}", *arguments(root, "lora")],
            cwd=HERE,
            env=os.environ | ENVIRONMENT | slurm | path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{stage.name}: running on 2 processes (MULTI_CPU, gloo), computing in float32" in done.stdout
        assert f"{stage.name}: 2 processes, models sharded (FSDP2, gathered per step)" in done.stdout
        same_bytes(root, whole, stage)


def start(root: Path, *more: str, restarts: int = 0) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """(torchrun with PPO on two processes, which has saved a checkpoint; the process id of each rank)."""
    command = [*TORCHRUN, "--max-restarts", str(restarts), "-m", "stages.ppo", *arguments(root, "lora"), *more]
    environment = os.environ | ENVIRONMENT
    log = (root / "log").open("w")
    process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=log, text=True)
    while not (root / "smoke" / "ppo.partial" / "checkpoints" / "checkpoint-00000001").is_dir():
        assert process.poll() is None, (root / "log").read_text()[-3000:]
        time.sleep(0.01)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    ranks = {}
    for pid in map(int, listed.split()):
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        ranks[next(int(line[5:]) for line in variables if line.startswith("RANK="))] = pid
    return process, ranks


def test_torchrun_restarts_a_killed_run_from_its_checkpoint(before_ppo: Path, whole: Path) -> None:
    process, ranks = start(before_ppo, restarts=2)
    os.kill(ranks[0], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, (before_ppo / "log").read_text()[-3000:]
    assert "ppo: resuming" in (before_ppo / "log").read_text()
    same_bytes(before_ppo, whole, ppo.STAGE)


def test_a_hanging_process_is_named_after_the_timeout_and_the_run_resumes(before_ppo: Path, whole: Path) -> None:
    process, ranks = start(before_ppo, "--processes.timeout_minutes", "0.1")
    os.kill(ranks[1], signal.SIGSTOP)
    begun = time.monotonic()
    assert process.wait(timeout=300) != 0
    assert time.monotonic() - begun < 60
    errors = [line for line in (before_ppo / "log").read_text().splitlines() if line.startswith("error")]
    assert errors == [
        "error: waited longer than processes.timeout_minutes for process 1: it hangs, or needs longer and the timeout "
        "must be raised"
    ]
    launch(ppo.STAGE, before_ppo, "lora", 2)
    same_bytes(before_ppo, whole, ppo.STAGE)


ZERO_3 = {
    # Without the threshold the tiny model's weights would be too small to be sharded.
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_sft_with_deepspeed_agrees_with_ddp(before_reward: Path, tmp_path: Path, adapter: str) -> None:
    settings = tmp_path / "zero3.json"
    settings.write_text(json.dumps(ZERO_3))
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0")
    commands = {
        "DDP": (TORCHRUN, {}),
        "ZeRO-2": ((*accelerate, "--config_file", "configs/accelerate/zero2.yaml", "--num_processes", "2"), {}),
        "ZeRO-3": (TORCHRUN, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(settings)}),
    }
    weights = {}
    for name, (command, variables) in commands.items():
        root = tmp_path / name
        shutil.copytree(before_reward / "smoke" / "data", root / "smoke" / "data")
        # Clipped gradients, several micro-batches a step, mixed precision.
        more = ("--sft.max_grad_norm", "0.1", "--sft.micro_batch_size", "4", "--model.precision", "bfloat16")
        done = subprocess.run(
            [*command, "-m", "stages.sft", *arguments(root, adapter), *more],
            cwd=HERE,
            env=os.environ | ENVIRONMENT | variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"sharded (DeepSpeed {name})" in done.stdout or name == "DDP"
        weights[name] = load_file(root / "smoke" / "sft" / "model" / "model.safetensors")
    for name in ("ZeRO-2", "ZeRO-3"):
        pairs = [(weight.double(), weights[name][key].double()) for key, weight in weights["DDP"].items()]
        squares = sum(float((one - other).square().sum()) for one, other in pairs)
        difference = math.sqrt(squares / sum(one.numel() for one, _ in pairs))
        # Gradients are summed in another order, and Adam divides by them. Weights in bfloat16 would differ by 5e-5.
        assert difference < 1e-5, name
