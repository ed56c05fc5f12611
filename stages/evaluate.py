"""Compares base, SFT, PPO and other models on the prompts of held-out users.

python -m stages.evaluate --config configs/demo.yaml
python -m stages.evaluate --config configs/demo.yaml --evaluate.judges [rubric,gold] --evaluate.gold.model owner/name
"""

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.llm_config import UNHASHED
from modeling.disk import file_digest
from stages import manifest
from stages.config import STAGES, RunConfig
from stages.headline import summary
from stages.outdated import outdated
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from data.records import Demonstration
    from evaluation.few_shot import FewShotModel
    from evaluation.judges.protocol import Judge
    from evaluation.metadata import MetadataRater
    from evaluation.models import ComparedModel
    from modeling.run import Run


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes generations.jsonl, evaluation.json and headline.json, and best_of_n.jsonl if best-of-n is configured."""
    from data.sets import read_texts
    from evaluation.best_of_n import Proxy
    from evaluation.comparison import Comparison
    from evaluation.results import Results
    from modeling.accelerator import from_main, main_alone, make_accelerator
    from modeling.load import base_model_place, read_settings
    from modeling.run import Run
    from stages.inputs import refuse_long_texts

    accelerator, settings, data = make_accelerator(config.model.device), config.evaluate, run.stage("data")
    sft, reward, max_tokens = run.stage("sft"), run.stage("reward"), config.reward.max_tokens_per_micro_batch
    base = from_main(accelerator, lambda: base_model_place(config.model))
    refuse_long_texts(config, read_settings(base, config.model))
    refuse_copied_gold(settings.gold.model, reward / "model")
    trust = (config.model if config.reward.base is None else config.reward).trust_remote_code
    of_run = Run(accelerator, config.seed, out)
    given = judging(config, data, of_run, teachers(config, run))
    comparison = Comparison(
        settings=settings,
        run=of_run,
        models=models(config, run, base),
        prompts=given.prompts,
        judges=given.judges,
        texts=list(read_texts(data, "heldout")),
        text_tokens=config.data.pretraining_tokens,
        proxy=Proxy.of(sft / "model", reward / "model", config.model, trust) if settings.best_of_n else None,
        max_tokens=max_tokens,
    )
    accelerator.print(f"evaluate: generation with {summary(settings.recorded(config.seed))}", flush=True)
    comparison.sample_and_score()
    headline: dict[str, Any] = {}
    with main_alone(accelerator):
        if accelerator.is_main_process:
            accuracy = json.loads((reward / "accuracy.json").read_text())
            headline = Results(comparison, config.labels, given.rater).write(accuracy["test"], before(run))
    return headline


@dataclass(frozen=True)
class Judging:
    """The held-out prompts, and the judges of the answers to them."""

    prompts: "Sequence[Demonstration]"
    judges: "Sequence[Judge]"
    rater: "MetadataRater | None"
    """Asks a language model for the paper's metadata."""


def teachers(config: RunConfig, run: RunFolder) -> set[str]:
    """The labelers of the reward model's training rankings: `human`, `simulated`, `llm`, and names of language models;
    also those of the run that trained `reward.base`. Empty if no run trained it on rankings.
    """
    from stages.inputs import rankings

    found, runs = set[str](), [run]
    for one in runs:
        made = manifest.read(one.stage("reward"))
        if made is None:
            continue
        if made.config["reward"]["epochs"] > 0:
            with contextlib.suppress(ValueError):  # rankings that have been removed since
                ranked = rankings(config, one, "train")
                found |= {by.labeler for by in ranked} | {by.labeler_id for by in ranked if by.labeler == "llm"}
            # Rows may have labeler ids of their own although their source names a language model.
            data = made.config["data"]
            named = {data["sources"].get(source, {}).get("labeler") for source in data["rankings"]}
            found |= named - {None, "human"}
        base = Path(made.config["reward"]["base"] or "").resolve()
        other = RunFolder(base.parent.parent)
        if base == other.stage("reward") / "model" and other not in runs:
            runs.append(other)
    return found


def judging(config: RunConfig, data: Path, run: "Run", taught_by: Collection[str] = ()) -> Judging:
    """The prompts, judges and rater of `config.evaluate`. Raises ValueError for judges and models that cannot be used,
    without the models of this run; the pipeline therefore calls it before it trains them. Asks a language model that
    judges a simple question.

    Args:
        taught_by: the `teachers` of the reward model, once it is trained.
    """
    from data.sets import evenly, read_set
    from evaluation.judges.human import HumanJudge
    from evaluation.judges.llm_client import LLMClient
    from evaluation.judges.table import JudgeInputs, make_judge
    from evaluation.metadata import MetadataRater, rated_by_people
    from evaluation.models import ComparedModel
    from modeling.accelerator import from_main
    from modeling.foreign import refuse_unusable
    from modeling.load import base_model_place

    settings = config.evaluate
    foreign = replace(config.model.of_export(), trust_remote_code=settings.trust_remote_code)
    prompts = evenly(read_set(data, "sft", "test"), settings.max_prompts)
    for place in settings.places:
        ComparedModel(place, place, foreign, 1).check(prompts, settings.max_new_tokens)
        from_main(run.accelerator, partial(refuse_unusable, place, foreign, f"evaluate.models: {place}"))
    if "base_few_shot" in settings.models:
        base = from_main(run.accelerator, partial(base_model_place, config.model))
        few_shot_model(config, data, base).check(prompts, settings.max_new_tokens)
    client = LLMClient(settings.llm) if settings.asks_llm else None
    rater = MetadataRater(client) if client is not None and settings.metadata else None
    inputs = JudgeInputs(
        settings=settings, labels=config.labels, model_config=config.model, prompts=prompts, run=run,
        client=client, max_tokens=config.reward.max_tokens_per_micro_batch, teachers=taught_by,
    )  # fmt: skip
    judges = [make_judge(name, inputs) for name in settings.judges]
    for judge in judges:
        if isinstance(judge, HumanJudge):
            rated_by_people(judge.rankings, prompts, {})  # refuses malformed ratings
    if rater is not None:
        from_main(run.accelerator, rater.check)
    return Judging(prompts, judges, rater)


def models(config: RunConfig, run: RunFolder, base: str) -> "list[ComparedModel]":
    """The models to compare; `base` is the place of the base model."""
    from evaluation.models import compared_models

    settings, ppo = config.evaluate, {"ema": run.stage("ppo") / "model_ema", "last": run.stage("ppo") / "model"}
    if compares_baseline(config):
        settings = replace(settings, models=list(dict.fromkeys([*settings.models, "sft_baseline"])))
    folders = {f"ppo_{name}": place for name, place in ppo.items()} | {
        "sft_baseline": sft_baseline(config) / "model",
        "ppo": ppo[settings.weights],
        "sft": run.stage("sft") / "model",
    }
    places = {name: str(place) for name, place in folders.items()} | {"base": base}
    found = compared_models(settings, config.model, places)
    if "base_few_shot" in settings.models:
        found.append(few_shot_model(config, run.stage("data"), base))
    return found


def few_shot_model(config: RunConfig, data: Path, base: str) -> "FewShotModel":
    """The base model prompted with demonstrations of the training split; `base` is its place."""
    from data.sets import read_set
    from evaluation.few_shot import FewShotModel

    settings, shown = config.evaluate, read_set(data, "sft", "train")
    return FewShotModel(
        "base_few_shot", base, config.model, 1, settings.few_shot_examples, shown, settings.max_new_tokens, config.seed
    )


def refuse_copied_gold(gold: str | None, reward: Path, setting: str = "evaluate.gold.model") -> None:
    """Raises ValueError if the gold reward model that `setting` gives has the weights of the run's own."""
    if gold is None or not Path(gold).is_dir():
        return
    theirs, ours = (sorted(folder.glob("*.safetensors")) for folder in (Path(gold), reward))
    if not ours or [file.stat().st_size for file in theirs] != [file.stat().st_size for file in ours]:
        return
    if [file_digest(file) for file in theirs] == [file_digest(file) for file in ours]:
        raise ValueError(
            f"{setting}={gold} has the weights of the run's own reward model, on which PPO was trained: give "
            "a reward model that was trained on other rankings"
        )


def sft_baseline(config: RunConfig) -> Path:
    """The folder of the SFT baseline (C.1); `external` has its digest where it is compared."""
    return Path(config.runs_folder) / config.run_name / "sft_baseline"


def compares_baseline(config: RunConfig) -> bool:
    """Whether the SFT baseline is compared: if `evaluate.models` names it, or if it is finished and was made from the
    data and reward model that the run has now.
    """
    if "sft_baseline" in config.evaluate.models:
        return True
    folder = sft_baseline(config)
    if manifest.read(folder) is None:
        return False
    try:
        manifest.stage_digest(folder)  # raises if files are missing
        outdated(folder.parent, [folder.name], asdict(config))
    except ValueError:
        return False
    return True


def external(config: RunConfig) -> dict[str, str]:
    """Digests of models and files that no earlier stage made, and of the SFT baseline if it is compared. Raises
    ValueError if `evaluate.models` names a baseline that is missing.
    """
    settings, baseline = config.evaluate, sft_baseline(config)
    gold, llm = settings.gold, settings.llm
    files = [gold.chat_template, settings.human.path, llm.prompt_file, llm.metadata_prompt_file]
    own = {"sft_baseline": manifest.stage_digest(baseline)} if compares_baseline(config) else {}
    return own | manifest.model_digests(*settings.places, gold.model, *files)


LAST_ITERATIONS = 3
"""Number of last PPO iterations over which the headline averages the explained variance; a single one is noisy."""


def before(run: RunFolder) -> dict[str, float | None]:
    """Headline numbers of the stages before this one; None for unknown ones."""
    from evaluation.compare import mean
    from modeling.tracking import read_metrics

    found = [manifest.read(run.stage(name)) for name in STAGES[: STAGES.index("evaluate")]]
    rows = read_metrics(run.stage("ppo") / "metrics.jsonl")[-LAST_ITERATIONS:]
    return {
        "explained_variance": mean([row["explained_variance"] for row in rows]),
        "seconds_before_evaluation": round(sum(item.seconds for item in found if item is not None), 1),
    }


STAGE = Stage(
    "evaluate",
    sections=(
        "model", "evaluate", "labels", "data.pretraining_tokens", "reward.base", "reward.trust_remote_code",
        "reward.max_tokens_per_micro_batch",
    ),
    after=("data", "sft", "labels", "reward", "ppo"),
    work=work,
    external=external,
    parallel=True,
    discardable=("scratch",),
    hash_exclude=tuple(f"{section}.llm.{name}" for section in ("evaluate", "labels") for name in UNHASHED),
)  # fmt: skip

if __name__ == "__main__":
    stage_main(STAGE, "Compares models on held-out prompts.")
