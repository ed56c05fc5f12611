"""`python -m stages.plan` from a configuration to its tables, and its errors."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeling.memory_plan import Item, strategies
from stages.plan import OPTIONS, StagePlan, command, work
from stages.runner import main
from tests.families import make_family

SMALL = ["--model.base", "tiny", "--model.lora.rank", "4"]


def plan(*arguments: str) -> None:
    main(work, "plan", "", [*SMALL, *arguments], OPTIONS)


def test_every_stage_gets_a_table_and_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    plan("--gpus", "8", "--gpu_memory", "24")
    said = capsys.readouterr().out
    for stage, setting in {
        "sft": "micro_batch_size", "samples": "batch_size", "reward": "max_tokens_per_micro_batch",
        "ppo": "max_tokens_per_micro_batch", "evaluate": "batch_size",
    }.items():  # fmt: skip
        assert f"largest {stage}.{setting}" in said
        assert f"make {stage} CONFIG=... GPUS=8 ACCELERATE=configs/accelerate/ddp.yaml" in said
    assert "FSDP2 x 8" in said
    assert "with offload" in said
    plan("--sft.epochs", "0")
    said = capsys.readouterr().out
    assert "make sft CONFIG=...\n" in said, "it trains nothing"
    assert said.index("make data ") < said.index("make sft ") < said.index("make labels ") < said.index("make ppo ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpus", "-1"], "error: --gpus=-1 must be at least 1\n"),
        (["--gpu_memory", "0"], "error: --gpu_memory=0 must be above 0\n"),
        (["--gpu_memory", "much"], "error: gpu_memory: expected float, found 'much'\n"),
    ],
)
def test_impossible_requests_end_in_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan(*arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == sentence


def test_a_mixture_of_experts_is_refused_in_one_sentence_without_torchs_traceback(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("torch._subclasses.fake_tensor").addHandler(handler)
    try:
        with pytest.raises(SystemExit) as ended:
            plan("--model.base", str(make_family("qwen3_moe", tmp_path, tiny_tokenizer)))
    finally:
        logging.getLogger("torch._subclasses.fake_tensor").removeHandler(handler)
    assert ended.value.code == 2
    assert "counted without data (RuntimeError); mixtures of experts are not supported\n" in capsys.readouterr().err
    assert not logged


def test_the_fastest_strategy_that_fits_is_recommended() -> None:
    """100 sharded bytes, and 1 per token."""

    def build(tokens: int) -> list[Item]:
        return [Item("always", "", 100, 1, "sharded"), Item("update", "", tokens, 1)]

    stage = StagePlan("ppo", "ppo.max_tokens_per_micro_batch", 60, build, least=20, shards=True)
    launch = "make ppo CONFIG=... GPUS=2 ACCELERATE=configs/accelerate"
    assert command(stage, strategies(2), 160) == f"{launch}/ddp.yaml"
    assert command(stage, strategies(2), 159) == f"{launch}/fsdp2.yaml"
    assert command(stage, strategies(2), 109) == f"{launch}/fsdp2_offload.yaml"
    assert (
        command(stage, strategies(2), 59) == f'{launch}/fsdp2_offload.yaml ARGS="--ppo.max_tokens_per_micro_batch 59"'
    )
    savings = {"update": "lower data.max_prompt_tokens", "roll-out": "no", "always": "set model.adapter to lora"}
    with pytest.raises(
        ValueError,
        match=r"^ppo: with ppo\.max_tokens_per_micro_batch=20 its update needs .* GiB per GPU \(.*offload\), .* are "
        r"usable: lower data\.max_prompt_tokens, or set model\.adapter to lora, or use larger GPUs or a smaller model$",
    ):
        command(replace(stage, savings=savings), strategies(2), 19)
