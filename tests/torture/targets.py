"""The stages to kill, and the moments of the kills."""

from dataclasses import dataclass

ANY_TIME, SIGTERM = "any time", "SIGTERM"
ENDS = {
    "manifest": ("STAGE.partial/*manifest.json*",),
    "last renames": ("STAGE", "STAGE/*"),
}
SCRATCH = {
    "answers are written": ("STAGE.partial/scratch/*.rank-*.jsonl",),
    "answers are merged": ("STAGE.partial/scratch/.*.partial", "STAGE.partial/scratch/*[a-z].jsonl"),
}
SEALED = {
    "checkpoint half written": (
        "STAGE.partial/checkpoints/.checkpoint-*.partial/*",
        "STAGE.partial/checkpoints/.checkpoint-*.partial/state/*",
    ),
    "checkpoint just renamed": ("STAGE.partial/checkpoints/checkpoint-*",),
    "old checkpoint goes": ("STAGE.partial/checkpoints/.checkpoint-*.discarded",),
}


@dataclass(frozen=True)
class Target:
    """A stage, how it is run, and when it is killed."""

    stage: str
    settings: tuple[str, ...]
    moments: dict[str, tuple[str, ...]]
    """Glob patterns of files that mark the moment; STAGE stands for the stage's name."""
    weights: dict[str, int]
    """Weights for drawing a moment; 1 for those not listed."""
    keep: tuple[str, ...] = ()
    """Settings of the uninterrupted run only."""
    rows: tuple[str, ...] = ()
    """Files of which a killed run may have only the beginning."""
    checkpoints: str = "checkpoints"
    comparable: bool = False
    """Whether both runs write their checkpoints at the same steps."""
    temporary: tuple[str, ...] = ("checkpoints", "trainer", "scratch")
    """Files that a finished stage does not keep."""


TARGETS = {
    target.stage: target
    for target in (
        Target(
            "sft",
            # Some forty steps, and a checkpoint after every few.
            ("--sft.epochs", "3", "--sft.batch_size", "4", "--sft.micro_batch_size", "2", "--sft.checkpoint_minutes",
            "0.002"), {
                ANY_TIME: (),
                "rows are written": ("STAGE.partial/metrics.jsonl",),
                "checkpoint begins": ("STAGE.partial/trainer/checkpoint-*",),
                "weights are written": ("STAGE.partial/trainer/checkpoint-*/*.safetensors",),
                "optimizer is written": ("STAGE.partial/trainer/checkpoint-*/optimizer.pt",),
                "random state is written": ("STAGE.partial/trainer/checkpoint-*/rng_state*.pth",),
                "trainer state is written": ("STAGE.partial/trainer/checkpoint-*/trainer_state.json",),
                "checkpoint is sealed": ("STAGE.partial/trainer/checkpoint-*/*checksums.json*",),
                "export": ("STAGE.partial/model/*",),
                **ENDS,
            },
            {ANY_TIME: 4, "checkpoint begins": 2, "optimizer is written": 2, "trainer state is written": 2},
            rows=("metrics.jsonl",),
            checkpoints="trainer",
        ),
        Target(
            "reward",
            (
                "--reward.epochs", "3", "--reward.batch_size", "4", "--reward.checkpoint_minutes", "0.004",
                "--reward.learning_curve", "[0.5]",
            ),
            {
                ANY_TIME: (),
                "rows are written": ("STAGE.partial/metrics.jsonl",),
                **SEALED,
                "part of the learning curve": ("STAGE.partial/checkpoints/fraction-*/checkpoints/checkpoint-*",),
                "export": ("STAGE.partial/adapter*", "STAGE.partial/model/*", "STAGE.partial/scores*"),
                **ENDS,
            },
            {ANY_TIME: 4, "checkpoint half written": 3, "checkpoint just renamed": 2, "export": 2},
            rows=("metrics.jsonl",),
        ),
        Target(
            "samples",
            (
                "--samples.batch_size", "2", "--samples.max_new_tokens", "20", "--samples.answers_per_prompt", "4",
                "--samples.max_heldout_prompts", "8",
            ),
            {ANY_TIME: (), **SCRATCH, "result": ("STAGE.partial/samples_*",), **ENDS},
            {ANY_TIME: 4, "answers are written": 4},
            checkpoints="scratch",
        ),
        Target(
            "evaluate",
            (
                "--evaluate.batch_size", "2", "--evaluate.max_new_tokens", "20", "--evaluate.answers_per_prompt", "3",
                "--evaluate.max_prompts", "16", "--evaluate.best_of_n_prompts", "8",
            ),
            {
                ANY_TIME: (),
                **SCRATCH,
                "numbers are kept": ("STAGE.partial/scratch/*.json",),
                "result": ("STAGE.partial/*.json*",),
                **ENDS,
            },
            {ANY_TIME: 4, "answers are written": 4, "numbers are kept": 2},
            checkpoints="scratch",
        ),
        Target(
            "ppo",
            # Twelve short iterations with all adaptive settings on.
            (
                "--ppo.total_episodes", "96", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4",
                "--ppo.checkpoint_every", "2", "--ppo.kl_target", "1.0", "--ppo.score_scaling", "running",
                "--ppo.held_out.every", "3",
            ),
            {
                ANY_TIME: (),
                "rows are written": tuple(f"STAGE.partial/{name}.jsonl" for name in ("metrics", "samples", "held_out")),
                **SEALED,
                "export": ("STAGE.partial/adapter*", "STAGE.partial/model*/*"),
                **ENDS,
                SIGTERM: (),
            },
            {
                ANY_TIME: 5, "checkpoint half written": 3, "checkpoint just renamed": 2, "rows are written": 2,
                "export": 2, SIGTERM: 2,
            },
            keep=("--ppo.keep_checkpoints", "1000"),
            rows=("metrics.jsonl", "samples.jsonl", "held_out.jsonl"),
            comparable=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    name: str
    arguments: tuple[str, ...] = ()
    processes: int = 1


VARIANTS = (
    Variant("lora"),
    Variant("full", ("--model.adapter", "none")),
    Variant("lora on two processes", processes=2),
)
