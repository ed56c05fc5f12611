"""Judges of answers, by their names in `evaluate.judges`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.records import Demonstration
from evaluation.config import EvaluateConfig
from evaluation.judges.gold import GoldJudge
from evaluation.judges.human import HumanJudge
from evaluation.judges.likelihood import ReferenceLikelihoodJudge
from evaluation.judges.llm import LLMJudge
from evaluation.judges.llm_client import LLMClient
from evaluation.judges.protocol import Judge
from evaluation.judges.simulated import ChrfJudge, RubricJudge
from labeling.config import LabelsConfig
from modeling.accelerator import from_main
from modeling.config import ModelConfig
from modeling.load import base_model_place
from modeling.run import Run


@dataclass(frozen=True, kw_only=True)
class JudgeInputs:
    """The inputs of `make_judges`."""

    settings: EvaluateConfig
    labels: LabelsConfig
    model_config: ModelConfig
    prompts: Sequence[Demonstration]
    """The prompts whose answers will be judged."""
    run: Run
    client: LLMClient | None
    """Asks the model of `settings.llm`, if it is used."""
    max_tokens: int
    """Maximum number of tokens per forward pass of a judge."""


def _rubric(inputs: JudgeInputs) -> Judge:
    return RubricJudge(inputs.labels)


def _chrf(inputs: JudgeInputs) -> Judge:
    return ChrfJudge()


def _reference_likelihood(inputs: JudgeInputs) -> Judge:
    accelerator, config = inputs.run.accelerator, inputs.model_config
    place = from_main(accelerator, lambda: base_model_place(config))
    judge = ReferenceLikelihoodJudge(place, config, inputs.max_tokens, accelerator)
    judge.check(inputs.prompts)
    return judge


def _gold(inputs: JudgeInputs) -> Judge:
    judge = GoldJudge.of(inputs.settings.gold, inputs.model_config, inputs.max_tokens, inputs.run.accelerator)
    judge.check(inputs.prompts)
    return judge


def _human(inputs: JudgeInputs) -> Judge:
    assert inputs.settings.human.path is not None, "EvaluateConfig.validate"
    judge = HumanJudge.of(inputs.settings.human.path, inputs.prompts)
    judge.taught = inputs.labels.labeler == "human"
    return judge


def _llm(inputs: JudgeInputs) -> Judge:
    assert inputs.client is not None, "EvaluateConfig.validate"
    judge, labeler = LLMJudge(inputs.client), inputs.labels
    judge.taught = labeler.labeler == "llm" and labeler.llm.model == inputs.settings.llm.model
    from_main(inputs.run.accelerator, judge.check)
    return judge


JUDGES: dict[str, Callable[[JudgeInputs], Judge]] = {
    "rubric": _rubric,
    "chrf": _chrf,
    "reference_likelihood": _reference_likelihood,
    "gold": _gold,
    "human": _human,
    "llm": _llm,
}
"""Constructors by name. They raise ValueError for every mistake that can be found before answers are sampled."""


def make_judges(inputs: JudgeInputs) -> list[Judge]:
    """The judges of `evaluate.judges`, in this order; the first gives the headline."""
    return [JUDGES[name](inputs) for name in inputs.settings.judges]
