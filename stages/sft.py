"""Stage 1: supervised fine-tuning on demonstrations.

python -m stages.sft --config configs/demo.yaml --sft.epochs 3
torchrun --nproc_per_node 8 -m stages.sft --config configs/demo.yaml
"""

from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains and saves `model`."""
    from data.sets import evenly, read_set, read_texts
    from data.tokenize import pretraining_chunks
    from modeling.accelerator import from_main, launched_for, make_accelerator
    from modeling.load import base_model_place, load_causal, load_tokenizer
    from modeling.run import Run
    from sft.train import Base, SFTData, train
    from stages.cautions import cautions, refuse_uneven_batches
    from stages.preflight import check_before_training

    accelerator = make_accelerator(config.model.device)
    refuse_uneven_batches(config, accelerator.num_processes, "sft")
    if launched_for("FSDP") and accelerator.device.type == "cuda":
        raise ValueError("SFT cannot export a sharded model: run it with ACCELERATE=configs/accelerate/ddp.yaml")
    for line in cautions(config, "sft"):
        accelerator.print(f"sft: warning: {line}")
    place = from_main(accelerator, lambda: base_model_place(config.model))
    tokenizer = load_tokenizer(place, config.model)
    model = load_causal(place, config.model, tokenizer, config.sft.residual_dropout, quantize=True)
    data = run.stage("data")
    from_main(accelerator, lambda: check_before_training(config, data, model, tokenizer))
    train_set = evenly(read_set(data, "sft", "train"), config.sft.max_train_examples)
    chunks = pretraining_chunks(tokenizer, read_texts(data, "train"), config.data.pretraining_tokens, len(train_set))
    sets = SFTData(train_set, read_set(data, "sft", "valid"), chunks)
    settings = Run(accelerator, config.seed, out, config.tracking)
    return train(config.sft, Base(model, tokenizer, config.model), sets, settings)


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
    hash_exclude=("tracking", "sft.checkpoint_minutes", "sft.activation_checkpointing"),
)

if __name__ == "__main__":
    stage_main(STAGE, "Stage 1: supervised fine-tuning.")
