"""Stage 1: supervised fine-tuning on demonstrations.

python -m stages.sft --config configs/demo.yaml --sft.epochs 3
torchrun --nproc_per_node 8 -m stages.sft --config configs/demo.yaml
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import RunConfig
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sft.config import SFTConfig
    from sft.train import Base, SFTData


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains and saves `model`."""
    from modeling.accelerator import make_accelerator
    from modeling.run import Run
    from sft.train import train

    accelerator = make_accelerator(config.model.device)
    base, sets = prepare(config, config.sft, run, accelerator)
    return train(config.sft, base, sets, Run(accelerator, config.seed, out, config.tracking))


def prepare(
    config: RunConfig, settings: "SFTConfig", run: RunFolder, accelerator: "Accelerator"
) -> tuple["Base", "SFTData"]:
    """The base model and the data to train it on with the settings of `sft` or `sft_baseline`.

    Prints warnings about the settings. Raises ValueError if a stage of the pipeline cannot use the model or the data.
    """
    from data.sets import evenly, read_set, read_texts
    from data.tokenize import pretraining_chunks
    from modeling.accelerator import from_main, launched_for
    from modeling.load import base_model_place, load_causal, load_tokenizer
    from sft.train import Base, SFTData
    from stages.cautions import cautions, refuse_uneven_batches
    from stages.preflight import check_before_training

    section = settings.section
    refuse_uneven_batches(config, accelerator.num_processes, section)
    if launched_for("FSDP") and accelerator.device.type == "cuda":
        raise ValueError("SFT cannot export a sharded model: run it with ACCELERATE=configs/accelerate/ddp.yaml")
    for line in cautions(config, section):
        accelerator.print(f"{section}: warning: {line}")
    place = from_main(accelerator, lambda: base_model_place(config.model))
    tokenizer = load_tokenizer(place, config.model)
    model = load_causal(place, config.model, tokenizer, settings.residual_dropout, quantize=True)
    data, checked = run.stage("data"), replace(config, sft=settings)
    from_main(accelerator, lambda: check_before_training(checked, data, model, tokenizer))
    train_set = evenly(read_set(data, "sft", "train"), settings.max_train_examples)
    chunks: list[list[int]] = []
    if settings.pretraining_fraction:  # all, for `mix` to draw from: the first may come from one document
        chunks = pretraining_chunks(tokenizer, read_texts(data, "train"), config.data.pretraining_tokens)
    sets = SFTData(train_set, read_set(data, "sft", "valid"), chunks)
    return Base(model, tokenizer, config.model), sets


def external(config: RunConfig) -> dict[str, str]:
    """Digests of a local base model."""
    return model_digests(config.model.base, config.model.chat_template)


STAGE = Stage(
    "sft",
    sections=("model", "sft", "data.pretraining_tokens"),
    after=("data",),
    work=work,
    external=external,
    parallel=True,
    scratch=("trainer",),
    hash_exclude=(
        "tracking",
        "sft.checkpoint_minutes",
        "sft.activation_checkpointing",  # and below: so that a run that was out of memory can resume
        "sft.micro_batch_size",
    ),
)

if __name__ == "__main__":
    stage_main(STAGE, "Stage 1: supervised fine-tuning.")
