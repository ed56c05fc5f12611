"""Launch commands that start another configuration than they ask for."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import pipeline, samples
from stages.config import RunConfig
from stages.launch import check_launch, connected, description, refuse_shared_gpus, refuse_unsupported
from stages.runner import run_stage
from tests.fakes import FakeAccelerator

CPU = torch.device("cpu")
ALONE, TWO = FakeAccelerator(0, 1, CPU), FakeAccelerator(0, 2, CPU)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "LOCAL_RANK", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_in_place_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_launch(RunConfig(), "ppo", ALONE)  # a variable of the cluster, without accelerate
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match="was asked for several processes and started one"):
        check_launch(RunConfig(), "ppo", ALONE)
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun with one process
    check_launch(RunConfig(), "ppo", ALONE)


def test_a_variable_that_a_launcher_left_behind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"LOCAL_RANK is set, but MASTER_ADDR is not: .*; for one, unset LOCAL_RANK"):
        connected(RunConfig())


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    config = RunConfig()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    refuse_shared_gpus(config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ValueError, match=r"^8 processes were started on a machine where torch sees 4 GPUs: start at"):
        connected(config)
    config.model.device = "cpu"
    refuse_shared_gpus(config)


def test_deepspeed_is_refused_before_any_work_in_other_stages_than_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is for the sft stage alone: run samples with"):
        run_stage(samples.STAGE, RunConfig(runs_folder=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()
    refuse_unsupported("sft")


def test_fsdp1_is_refused_before_any_work_and_by_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="uses FSDP1: set fsdp_version: 2"):
        run_stage(samples.STAGE, RunConfig(runs_folder=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("FSDP_VERSION", "2")
    refuse_unsupported("samples")


@pytest.mark.parametrize(("asked", "precision"), [("bf16", "float32"), ("fp16", "bfloat16")])
def test_another_precision_than_the_configurations_is_refused(
    asked: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig()
    config.model.precision = precision
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(ValueError, match=f"model.precision={precision} computes in {precision} here"):
        check_launch(config, "ppo", TWO)
    config.model.precision = "bfloat16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launch(config, "ppo", TWO)
    assert description(config, ALONE) == "1 process (cpu), computing in bfloat16"


@pytest.mark.parametrize(
    ("capabilities", "precision", "warned"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "bfloat16", True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32", False),
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16", False),
        ({"neon": True, "bf16": True}, "bfloat16", False),
        ({}, "bfloat16", False),
    ],
)
def test_bfloat16_on_a_cpu_without_its_instructions_is_reported(
    capabilities: dict[str, bool],
    precision: Any,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = RunConfig()
    config.model.precision = precision
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    check_launch(config, "ppo", ALONE)
    assert ("no instructions for bfloat16" in capsys.readouterr().out) == warned


def test_models_that_stay_whole_under_fsdp_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_launch(RunConfig(), "ppo", TWO)
    assert capsys.readouterr().out == ""
    check_launch(RunConfig(), "ppo", ALONE)
    assert "asks for FSDP, but there is only one process" in capsys.readouterr().out
    check_launch(RunConfig(), "sft", TWO)
    assert "on a CPU the Trainer replicates the model (DDP)" in capsys.readouterr().out
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    config = RunConfig()
    check_launch(config, "samples", TWO)
    config.reward.activation_checkpointing = True
    check_launch(config, "reward", TWO)
    assert capsys.readouterr().out == ""
    check_launch(config, "ppo", TWO)
    assert "is not used: set ppo.activation_checkpointing to true" in capsys.readouterr().out


def test_recorded_logprobs_in_mixed_precision_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    config = RunConfig(runs_folder=str(tmp_path / "runs"))
    config.model.precision, config.model.device, config.ppo.old_logprobs = "bfloat16", "cpu", "rollout"
    with pytest.raises(ValueError, match=r"ppo\.old_logprobs=rollout needs float32"):
        pipeline.work(config, force=False)
    assert not (tmp_path / "runs").exists()


def test_make_ignores_parallel_jobs() -> None:
    rules = ["--eval", "first:; @sleep 0.3; echo first", "--eval", "second:; @echo second"]
    shown = subprocess.run(
        ["make", "-j8", "--silent", *rules, "first", "second"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["first", "second"]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `make --dry-run`."""
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=Path(__file__).parents[2],
        env={name: text for name, text in os.environ.items() if name not in ("GPUS", "ACCELERATE")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("GPUS=0", "GPUS=0 must be a positive integer, the number of processes"),
        ("GPUS=0,1", "GPUS=0,1 must be a positive integer"),
        ("GPUS=1 2", "GPUS=1 2 must be a positive integer"),
        ("ACCELERATE=absent.yaml", "ACCELERATE=absent.yaml must begin with an accelerate configuration file"),
        ("ACCELERATE=absent.yaml configs/accelerate/ddp.yaml", "ACCELERATE=absent.yaml configs"),
        ("ACCELERATE=configs/accelerate", "ACCELERATE=configs/accelerate must begin with"),
        ("ACCELERATE=configs/smoke.yaml", "ACCELERATE=configs/smoke.yaml must begin with"),
    ],
)
def test_make_refuses_invalid_gpus_and_accelerate_files_where_it_uses_them(argument: str, sentence: str) -> None:
    name, _, text = argument.partition("=")
    ended = make("sft", argument)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert make("sft", **{name: text}).returncode == 2
    assert make("help", "clean", "label", "RUN=runs/x", **{name: text}).returncode == 0


@pytest.mark.parametrize("target", ["results-reward", "results-demo", "results-ablations"])
def test_a_configurations_name_may_have_blanks_and_parentheses(target: str) -> None:
    commands = make(target, "CONFIG=my configs/a (run).v2.yaml", "SEEDS=7").stdout
    assert "--config 'my configs/a (run).v2.yaml' --seed $seed --run_name results-a__run_.v2-seed$seed" in commands
    assert commands.count("my configs") == commands.count("'my configs/a (run).v2.yaml'")


def test_make_starts_one_process_or_a_launcher() -> None:
    for arguments, launcher in (
        ([], "bin/python -m"),
        (["GPUS="], "bin/python -m"),
        (["GPUS= 2 "], "bin/torchrun --standalone --nproc_per_node 2 -m"),
        (
            ["GPUS=2", "ACCELERATE= configs/accelerate/ddp.yaml --main_process_port 29501"],
            "bin/accelerate launch --config_file configs/accelerate/ddp.yaml --main_process_port 29501 "
            "--num_processes 2 -m",
        ),
    ):
        assert f"{launcher} stages.sft --config 'configs/demo.yaml'" in make("sft", *arguments).stdout
