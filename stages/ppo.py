"""Stage 3: PPO-ptx. Resumes from its last checkpoint after an interruption.

python -m stages.ppo --config configs/demo.yaml --ppo.kl_coef 0.05
torchrun --nproc_per_node 8 -m stages.ppo --config configs/demo.yaml
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import RunConfig
from stages.inputs import refuse_long_texts
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from ppo.trainer import PPOTrainer


def trainer_of(config: RunConfig, run: RunFolder, out: Path) -> "PPOTrainer":
    """The trainer of a run, which resumes from the checkpoints in `out`."""
    from data.sets import evenly, read_set, read_texts
    from data.tokenize import pretraining_chunks
    from modeling.accelerator import make_accelerator
    from modeling.adapters import what_lora_adapts
    from modeling.load import load_tokenizer, read_settings
    from modeling.run import Run
    from modeling.sharding import Sharding
    from ppo.actor_critic import Loader
    from ppo.evaluation import held_out_prompts
    from ppo.trainer import PPOData, PPOTrainer
    from stages.cautions import cautions, refuse_uneven_batches

    accelerator = make_accelerator(config.model.device)
    sharding = Sharding.from_environment()
    refuse_uneven_batches(config, accelerator.num_processes, "ppo")
    for line in cautions(config, "ppo"):
        accelerator.print(f"ppo: warning: {line}")
    data, sft, reward = (run.stage(name) for name in ("data", "sft", "reward"))
    model_config = config.model.of_export()
    tokenizer = load_tokenizer(sft / "model", model_config)
    refuse_long_texts(config, read_settings(sft / "model", model_config))
    held_out = evenly(held_out_prompts(data, config.ppo.held_out), config.ppo.held_out.prompts)
    trust = trusts_reward_code(config)
    loader = Loader(sft, reward, model_config, config.ppo, config.seed, accelerator.device, trust, sharding)
    models = loader.load(tokenizer)
    policy = models.policy.causal
    accelerator.print(f"ppo: {sharding.description(policy, accelerator.num_processes)}")
    if config.model.adapter == "lora":
        accelerator.print(f"ppo: {what_lora_adapts(policy)}")
    prompts = read_set(data, "rl", "train")
    chunks = pretraining_chunks(tokenizer, read_texts(data, "train"), config.data.pretraining_tokens)
    settings = Run(accelerator, config.seed, out, config.tracking, sharding)
    return PPOTrainer(config.ppo, models, tokenizer, PPOData(prompts, chunks, held_out), settings)


def trusts_reward_code(config: RunConfig) -> bool:
    """Whether to run Python code that comes with the reward model. With a separate base it may have its own code;
    otherwise it has the SFT model's.
    """
    return (config.model if config.reward.base is None else config.reward).trust_remote_code


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains; saves `model` (last weights) and `model_ema`."""
    from modeling.tracking import read_metrics
    from ppo.export import PolicyExport
    from ppo.monitors import warnings_of
    from stages.cautions import cautions

    trainer = trainer_of(config, run, out)
    average, accelerator = trainer.train(), trainer.accelerator

    export = PolicyExport(run.stage("sft") / "model", config.model.of_export(), trainer.tokenizer, out)
    export.write(trainer.models, average, accelerator)
    rows = read_metrics(out / "metrics.jsonl")
    if accelerator.is_main_process:
        of_run = warnings_of(config.ppo.monitors, [*rows, *read_metrics(out / "held_out.jsonl")])
        warnings = [*cautions(config, "ppo"), *of_run]
        (out / "warnings.json").write_text(json.dumps(warnings, indent=2) + "\n")
    return headline(rows)


def headline(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The results in metrics.jsonl that the manifest and the last log line show."""
    first, last = rows[0], rows[-1]
    return {
        "episodes": last["episodes"],
        "score_first": first["score"],
        "score_last": last["score"],
        "kl": last["kl"],
        "ended": last["ended"],
    }


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the local models and Python files of the reward."""
    return model_digests(*(term.source for term in config.ppo.rewards))


STAGE = Stage(
    "ppo",
    sections=("model", "ppo", "data.pretraining_tokens", "reward.base", "reward.trust_remote_code"),
    after=("data", "sft", "reward"),
    work=work,
    external=external,
    parallel=True,
    for_people=("snapshots",),  # only the KL sweep reads them, and takes them as inputs from outside
    scratch=("checkpoints",),
    hash_exclude=(
        "tracking",
        "ppo.monitors",
        "ppo.checkpoint_every",
        "ppo.keep_checkpoints",
        "ppo.max_tokens_per_micro_batch",
        "ppo.activation_checkpointing",  # and below: so that a run that was out of memory can resume
        "ppo.rollout_batch_size",
    ),
)

if __name__ == "__main__":
    stage_main(STAGE, "Stage 3: PPO-ptx.")
