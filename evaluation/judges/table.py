"""Judges of answers, by their names in `evaluate.judges`."""

from collections.abc import Collection, Sequence
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
    """The inputs of `make_judge`."""

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
    teachers: Collection[str] = ()
    """Who ranked what the reward model was trained on: `simulated`, `human` and names of language models."""


def make_judge(name: str, inputs: JudgeInputs) -> Judge:
    """The judge of this name in `evaluate.judges`. Raises ValueError for every mistake that can be found before answers
    are sampled.
    """
    settings, accelerator = inputs.settings, inputs.run.accelerator
    if name == "rubric":
        rubric = RubricJudge(inputs.labels)
        rubric.taught = "simulated" in inputs.teachers
        return rubric
    if name == "chrf":
        return ChrfJudge()
    if name == "reference_likelihood":
        place = from_main(accelerator, lambda: base_model_place(inputs.model_config))
        likelihood = ReferenceLikelihoodJudge(place, inputs.model_config, inputs.max_tokens, accelerator)
        likelihood.check(inputs.prompts)
        return likelihood
    if name == "gold":
        gold = GoldJudge.of(settings.gold, inputs.model_config, inputs.max_tokens, accelerator)
        gold.check(inputs.prompts)
        return gold
    if name == "human":
        assert settings.human.path is not None, "EvaluateConfig.validate"
        human = HumanJudge.of(settings.human.path, inputs.prompts)
        human.taught = "human" in inputs.teachers
        return human
    assert name == "llm"
    assert inputs.client is not None, "EvaluateConfig.validate"
    llm = LLMJudge(inputs.client)
    llm.taught = settings.llm.model in inputs.teachers
    from_main(accelerator, llm.check)
    return llm
