"""Connects the processes of a launch command, and checks that it started what it asked for: some commands silently
start another configuration.
"""

import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.config import RunConfig
from stages.interrupt import STOP

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
"""accelerate's names of mixed precision, and torch's."""
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""torch's names of a CPU's instructions for bfloat16."""
WAITING_SECONDS = 10.0
"""Seconds after which a process prints that it is waiting for the others to start."""
SFT = ("sft", "sft_baseline_epochs")
"""Stages that train with transformers' Trainer."""


def refuse_unsupported(stage: str) -> None:
    """Raises ValueError for FSDP1, and for DeepSpeed in a stage other than SFT, before processes are connected."""
    from modeling.accelerator import launched_for
    from modeling.sharding import Sharding

    Sharding.from_environment()
    if launched_for("DEEPSPEED") and stage != "sft":
        raise ValueError(
            f"DeepSpeed is for the sft stage alone: run {stage} with configs/accelerate/fsdp2.yaml or ddp.yaml"
        )


def connected(config: RunConfig) -> "Accelerator":
    """Connects the processes of this launch: waits until all have started, at most for `processes.timeout_minutes`.

    Raises ValueError if LOCAL_RANK is left over from another launch, or if processes would share a GPU.
    """
    from modeling.accelerator import make_accelerator

    if os.environ.get("LOCAL_RANK", "-1") != "-1" and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            "LOCAL_RANK is set, but MASTER_ADDR is not: start several processes with torchrun or accelerate launch; "
            "for one, unset LOCAL_RANK"
        )
    refuse_shared_gpus(config)
    count = os.environ.get("WORLD_SIZE", "1")
    line = f"waiting for the other processes of this launch (WORLD_SIZE={count})"
    waiting = threading.Timer(WAITING_SECONDS, partial(print, line, file=sys.stderr, flush=True))
    waiting.daemon = True
    if count != "1" and os.environ.get("LOCAL_RANK", "0") == "0":
        waiting.start()
    try:
        with STOP.watched():
            return make_accelerator(config.model.device, config.processes.timeout_minutes)
    finally:
        waiting.cancel()


def refuse_shared_gpus(config: RunConfig) -> None:
    """Raises ValueError if there are more processes on this machine than GPUs: NCCL does not support two processes on
    one GPU.
    """
    import torch

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if config.model.device != "cpu" and here > gpus > 0:
        raise ValueError(
            f"{here} processes were started on a machine where torch sees {gpus} GPU{'s' * (gpus > 1)}: start at most "
            f"{gpus} (GPUS={gpus}), or set model.device to cpu"
        )


def check_launch(config: RunConfig, stage: str, accelerator: "Accelerator") -> None:
    """Prints a warning if models are not sharded or activations are not recomputed although the command asked for it,
    or if this CPU is slow in the configured precision.

    Raises ValueError if it asked for several processes and started one, or for another precision than model.precision.
    """
    from modeling.accelerator import launched_for
    from modeling.sharding import switched_on

    # Only accelerate's launcher sets the first variable; without LOCAL_RANK it has started a single process.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
    if by_accelerate and accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ:
        raise ValueError(
            "accelerate launch was asked for several processes and started one: use --config_file "
            "configs/accelerate/ddp.yaml without --cpu or use_cpu: true, or torchrun (for one process, unset "
            "MASTER_ADDR)"
        )
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if name not in ("no", *PRECISIONS):
        raise ValueError(f"the launch command asks for mixed precision in {name}, which is not supported: leave it out")
    if (asked := PRECISIONS.get(name)) is not None and asked != (found := precision(config, accelerator)):
        raise ValueError(
            f"the launch command asks for mixed precision in {asked}, but model.precision={config.model.precision} "
            f"computes in {found} here: set model.precision, and leave mixed precision out of the command"
        )
    if launched_for("FSDP") and accelerator.num_processes == 1:
        accelerator.print(
            f"{stage}: warning: the launch command asks for FSDP, but there is only one process: models are not sharded"
        )
    elif launched_for("FSDP") and stage in SFT and accelerator.device.type == "cpu":
        accelerator.print(
            f"{stage}: warning: the launch command asks for FSDP, but on a CPU the Trainer replicates the model (DDP)"
        )
    trains = stage in ("reward", "ppo")
    if trains and switched_on("FSDP_ACTIVATION_CHECKPOINTING") and not getattr(config, stage).activation_checkpointing:
        accelerator.print(
            f"{stage}: warning: fsdp_activation_checkpointing of the launch command is not used: set "
            f"{stage}.activation_checkpointing to true"
        )
    if accelerator.device.type == "cpu" and precision(config, accelerator) == "bfloat16" and emulates_bfloat16():
        accelerator.print(
            f"{stage}: warning: this CPU has no instructions for bfloat16 and emulates it, which is slower than "
            "float32: set model.precision to float32"
        )


def emulates_bfloat16() -> bool:
    """Whether torch reports that this CPU has no instructions for bfloat16.

    On two cores of an EPYC, matrix products in bfloat16 then ran at a quarter (AVX2) or half (AVX-512) of float32's
    speed; with AVX512_BF16 they ran at two and a half times its speed.
    """
    import torch

    # Older versions of torch do not report them.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    known = [capabilities[name] for name in BFLOAT16 if name in capabilities]
    return bool(known) and not any(known)


def precision(config: RunConfig, accelerator: "Accelerator") -> str:
    """The data type of forward and backward passes."""
    from modeling.load import autocast_dtype

    return str(autocast_dtype(config.model, accelerator.device) or "torch.float32").removeprefix("torch.")


def description(config: RunConfig, accelerator: "Accelerator") -> str:
    """What was started, for the log: number of processes, accelerate's distributed type, backend, precision."""
    count, kind = accelerator.num_processes, accelerator.device.type
    if count > 1:
        kind = f"{accelerator.distributed_type.value}, {accelerator.state.backend}"
    return f"{count} process{'es' if count > 1 else ''} ({kind}), computing in {precision(config, accelerator)}"
