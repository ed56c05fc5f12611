"""Model cards: a README.md beside each trained model, with metadata and results that the Hugging Face Hub shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from reports.formats import dig, number, percent, spaced, with_interval
from reports.page import Table, render
from reports.verdict import labeler_note

PAPER = "arxiv:2203.02155"


@dataclass(frozen=True)
class Kind:
    """A kind of trained model."""

    stage: str
    about: str
    task: str
    """The Hub's name of the task."""
    settings: tuple[str, ...]
    """The settings of the stage that the card lists."""


PPO_SETTINGS = (
    "total_episodes", "batch_size", "learning_rate", "rewards", "kl_coef", "kl_target", "kl_placement", "ptx_coef",
    "gae_lambda", "clip_range",
)  # fmt: skip
KINDS = {
    "sft/model": Kind(
        "sft",
        "the supervised model (stage 1), from which PPO starts",
        "text-generation",
        ("epochs", "learning_rate", "batch_size", "pretraining_fraction", "residual_dropout"),
    ),
    "reward/model": Kind(
        "reward",
        "the reward model (stage 2), which scores an answer to a prompt",
        "text-classification",
        ("epochs", "learning_rate", "batch_size"),
    ),
    "ppo/model": Kind(
        "ppo",
        "the policy after PPO-ptx (stage 3), with its last weights",
        "text-generation",
        PPO_SETTINGS,
    ),
    "ppo/model_ema": Kind(
        "ppo",
        "the policy after PPO-ptx (stage 3), with the moving average (EMA) of its weights",
        "text-generation",
        (*PPO_SETTINGS, "ema_decay"),
    ),
}
"""By the model's folder in the run folder."""
TEXTS = "held-out pretraining text"
"""What perplexity is measured on; all other metrics are measured on prompts of held-out users."""
Result = tuple[str, str, Any, str]
"""Type and name of a metric, its value, and the value as text."""


def write_model_cards(run: Path, run_name: str) -> None:
    """Writes README.md into the folder of every model in the run folder."""
    for place, kind in KINDS.items():
        if (run / place).is_dir() and (run / kind.stage / "manifest.json").is_file():
            (run / place / "README.md").write_text(card(run, place, run_name), encoding="utf-8")


def shown(value: Any) -> str:
    """A setting's value; of the terms of the reward only what is set."""
    if isinstance(value, list):
        value = [{name: given for name, given in term.items() if given} for term in value]
    return str(value)


def card(run: Path, place: str, run_name: str) -> str:
    """The text of a model's README.md."""
    kind = KINDS[place]
    manifest, config = read(run / kind.stage / "manifest.json"), configuration(run, kind.stage)
    base, revision = config["model"]["base"], dig(config, "model.revision")
    found, policy = results(run, place), evaluated(run)
    trained = config[kind.stage].get("epochs") != 0
    code = None
    if kind.stage == "reward":
        if config["reward"]["base"] is not None:
            base, revision = config["reward"]["base"], dig(config, "reward.revision")
        code = (run / "reward" / "score.py").read_text() if (run / "reward" / "score.py").is_file() else None
    name = f"{run_name}-{place.replace('/model', '').replace('_', '-')}"
    listed = kind.settings if trained else ("epochs",)
    settings = [[f"`{kind.stage}.{key}`", shown(dig(config, f"{kind.stage}.{key}"))] for key in listed]
    head = ModelCardData(
        model_name=name,
        base_model=base if "/" in base and not Path(base).exists() else None,
        library_name="transformers",
        # Without a classifier in transformers, the code defines one.
        pipeline_tag=None if "class RewardModel" in (code or "") else kind.task,
        tags=["rlhf", "rlhf-ptx", PAPER],
        eval_results=[
            EvalResult(
                task_type=kind.task,
                dataset_type="held-out-text" if metric == "perplexity" else "held-out",
                dataset_name=f"{TEXTS if metric == 'perplexity' else 'held-out users'} of {run_name}",
                metric_type=metric,
                metric_name=title,
                metric_value=round(value, 6),
            )
            for metric, title, value, _ in found
        ]
        or None,
    )
    return render(
        "model_card.md.j2",
        "markdown.j2",
        head=head.to_yaml(),
        name=name,
        kind=kind,
        base=base,
        revision=revision,
        trained=trained,
        code=code,
        adapter=config["model"]["adapter"],
        rotary="rope_parameters" in read(run / place / "config.json"),
        on_prompts=any(metric != "perplexity" for metric, *_ in found),
        settings=Table(["Setting", "Value"], settings, words=(1,)),
        seed=manifest["seed"],
        commit=manifest["git_commit"],
        packages=manifest["packages"],
        sources=sources(config, kind.stage),
        untrained_sft=dig(config, "sft.epochs") == 0 and base == config["model"]["base"],
        results=Table(["Metric", "Value"], [[title, text] for _, title, _, text in found], words=(1,)),
        judge=labeler_note(config, read(run / "evaluate" / "evaluation.json")),
        is_other_policy=policy is not None and place != policy,
        prompts=read(run / "data" / "facts.json").get("untrained_prompt"),
    )


def sources(config: dict[str, Any], stage: str) -> list[str]:
    """The data sources with which a stage's model, and those from which it started, were trained or calibrated."""
    ranked = stage != "sft" and dig(config, "reward.epochs") != 0
    names = ["demonstrations"]
    if ranked or stage == "ppo":
        names.append("prompts")
    if ranked:
        names.append("rankings")
    from_sft = stage != "reward" or dig(config, "reward.base") is None
    in_sft = from_sft and dig(config, "sft.epochs") and dig(config, "sft.pretraining_fraction")
    if in_sft or (stage == "ppo" and dig(config, "ppo.ptx_coef")):
        names.append("pretraining")
    return [source for name in names for source in config["data"].get(name, [])]


def configuration(run: Path, stage: str) -> dict[str, Any]:
    """The configuration of a stage; the sections data, sft, labels and reward are those that their stages recorded,
    since a later stage may have been run with others.
    """
    config = dict(read(run / stage / "manifest.json")["config"])
    for name in ("data", "sft", "labels", "reward"):
        config |= {name: found[name]} if (found := read(run / name / "manifest.json").get("config")) else {}
    return config


def evaluated(run: Path) -> str | None:
    """The folder of the policy whose results are in evaluation.json; None before the evaluation."""
    weights = read(run / "evaluate" / "evaluation.json").get("weights", "")
    return {"ema": "ppo/model_ema", "last": "ppo/model"}.get(weights)


def results(run: Path, place: str) -> list[Result]:
    """The measured results of a model; empty before its evaluation."""
    evaluation, accuracy = read(run / "evaluate" / "evaluation.json"), read(run / "reward" / "accuracy.json")
    found: list[Result] = []

    def add(metric: str, title: str, value: Any, percents: bool = False) -> None:
        form = percent if percents else number
        if isinstance(value, Mapping):
            found.append((metric, title, value["mean"], with_interval(value, form)))
        elif value is not None:
            found.append((metric, title, value, form(value)))

    if place == "reward/model":
        test = accuracy.get("test", {})
        add("accuracy", "Pairwise accuracy on held-out rankings", test.get("accuracy"), True)
        if best := test.get("best_baseline"):
            title = f"Accuracy of the best simple baseline ({spaced(best)})"
            add("baseline_accuracy", title, dig(test, f"baselines.{best}.accuracy"), True)
    elif place == "sft/model":
        add("perplexity", f"Perplexity of {TEXTS}", dig(evaluation, "perplexity.sft"))
    elif place == evaluated(run):
        add("win_rate", "Win rate against SFT", dig(evaluation, "win_rate.sft"), True)
        title = "Win rate against SFT, length-controlled"
        add("win_rate_length_controlled", title, evaluation.get("win_rate_length_controlled"), True)
        title = "Win rate against SFT where both answers end"
        add("win_rate_both_end", title, evaluation.get("win_rate_both_end"), True)
        add("kl", "KL to SFT in nats", evaluation.get("kl"))
        add("perplexity", f"Perplexity of {TEXTS}", dig(evaluation, "perplexity.ppo"))
    return found


def read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if there is none."""
    loaded: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return loaded
