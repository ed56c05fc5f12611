"""Settings of the evaluation stages."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data.numbers import NonNegativeInt, PositiveInt, check_numbers
from labeling.llm_config import LLMConfig
from modeling.config import GenerationSettings, ModelConfig

COMPARED = ("base", "sft", "ppo")
"""Models that are always compared."""
NULL_BASELINES = ("random", "longest", "echo")
"""Baselines without a model, see evaluation/baselines.py."""
SPECIAL = ("base_few_shot", "ppo_ema", "ppo_last", "sft_baseline")
"""Names in `evaluate.models` that are neither folders nor models on the Hub."""


@dataclass
class GoldConfig:
    """A held-out ("gold") reward model as a judge: neither PPO nor the run's reward model was trained on its scores.
    All ours.
    """

    model: str | None = None
    """Reward model with any tokenizer: a folder, or a model on the Hub."""
    revision: str | None = None
    """Commit or tag of `model` on the Hub; null pins the commit that is current when the run starts."""
    trust_remote_code: bool = False
    """Run Python code that comes with `model`. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations for `model`; null uses the tokenizer's own, or a plain one if it has
    none.
    """

    def of(self, config: ModelConfig) -> ModelConfig:
        """The model settings with this model's revision, trust and template."""
        return replace(
            config,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            chat_template=self.chat_template,
        )

    def refuse_orphans(self, section: str) -> None:
        """Raises ValueError for settings of a model that is not given; `section` is the dotted name."""
        for name in ("revision", "chat_template"):
            if self.model is None and getattr(self, name) is not None:
                raise ValueError(f"{section}.{name} needs {section}.model, which is not set")


@dataclass
class HumanConfig:
    """People's rankings as a judge. All ours."""

    path: str | None = None
    """Rankings of the compared answers in JSON Lines (docs/labeling.md): `completions` are answers of
    generations.jsonl. Pairs that nobody ranked are left out.
    """


@dataclass
class EvaluateConfig(GenerationSettings):
    """Comparison of base, SFT, PPO and other models on the prompts of held-out users. All ours unless a section is
    named.

    With `temperature` 0 the KL is not estimated, because the estimate needs samples. With `top_k` or `top_p` the KL is
    that of the full distributions, but its estimate is biased.
    """

    weights: Literal["ema", "last"] = "ema"
    """PPO's weights to evaluate: the EMA or the last ones. C.4: EMA."""
    models: list[str] = field(default_factory=list)
    """Models to compare besides base, SFT and PPO: folders or models on the Hub, each with its own tokenizer and chat
    template; `base_few_shot`, the base with demonstrations in its prompt; `ppo_ema` or `ppo_last`, whichever `weights`
    is not; `sft_baseline`, the SFT baseline of C.1. A finished baseline is compared without being named, unless the
    data or the reward model have changed since.
    """
    trust_remote_code: bool = False
    """Run Python code that comes with the folders and Hub models in `models`. Off unless you trust their authors."""
    few_shot_examples: PositiveInt = 4
    """Demonstrations of the training split in each prompt of `base_few_shot`. Ours."""
    judges: list[Literal["rubric", "chrf", "reference_likelihood", "gold", "human", "llm"]] = field(
        default_factory=lambda: ["rubric", "chrf"]
    )
    """Judges of the answers; the first gives the headline. `rubric`, the simulated labeler; `chrf`, character overlap
    with the reference; `reference_likelihood`, of the reference under the base model after an answer; `gold`, a
    held-out reward model; `human`, people's rankings; `llm`, a language model. Ours.
    """
    gold: GoldConfig = field(default_factory=GoldConfig)
    """Settings of the judge `gold`."""
    human: HumanConfig = field(default_factory=HumanConfig)
    """Settings of the judge `human`."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    """Settings of the judge `llm`, and of `metadata`."""
    metadata: bool = False
    """Ask the model of `llm` for the paper's metadata of each answer (table 3): flags and overall quality, 1 to 7."""
    max_prompts: PositiveInt | None = None
    """Maximum number of held-out prompts, spread evenly over the set; null uses all. Ours."""
    answers_per_prompt: PositiveInt = 1
    """Answers sampled per prompt from each model; the base model, shown for comparison, gives one. More answers
    reduce the noise of each prompt; the bootstrap resamples users. Ours.
    """
    perplexity_examples: PositiveInt = 32
    """Number of held-out pretraining examples for perplexity. Ours."""
    samples_in_report: NonNegativeInt = 200
    """Maximum number of prompts whose answers the report shows side by side, spread evenly over the set. Ours."""
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""
    best_of_n: NonNegativeInt = 0
    """Answers sampled per prompt from SFT for best-of-n: the reward model chooses the best of 1, 2, 4 and so on up to
    all of them, which PPO has to beat at the same KL (Gao et al. 2022). 0 turns it off. Ours.
    """
    best_of_n_prompts: PositiveInt | None = None
    """Maximum number of held-out prompts for best-of-n, spread evenly over the set; null uses all. Ours."""

    @property
    def places(self) -> list[str]:
        """The folders and Hub models in `models`."""
        return [name for name in self.models if name not in SPECIAL]

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "evaluate")
        if "" in self.models:
            raise ValueError("evaluate.models contains an empty name")
        if self.best_of_n and self.greedy:
            raise ValueError(
                f"evaluate.best_of_n={self.best_of_n} needs an evaluate.temperature above 0 and a top_k other than 1: "
                "greedy answers to a prompt are identical"
            )
        self._validate_models()
        self._validate_judges()

    def _validate_models(self) -> None:
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"evaluate.models={self.models} names a model twice")
        taken = {*COMPARED, *NULL_BASELINES, "best_of_n"}
        for name in self.models:
            if name in taken:
                raise ValueError(
                    f"evaluate.models: {name!r} is always compared; write ./{name} if you mean a folder of that name"
                )
        if f"ppo_{self.weights}" in self.models:
            raise ValueError(
                f"evaluate.models names ppo_{self.weights}, which evaluate.weights={self.weights} compares as ppo "
                "anyway: leave it out"
            )

    @property
    def asks_llm(self) -> bool:
        """Whether a language model judges or rates answers."""
        return self.metadata or "llm" in self.judges

    def _validate_judges(self) -> None:
        if not self.judges:
            raise ValueError("evaluate.judges is empty: name at least one judge")
        if len(set(self.judges)) < len(self.judges):
            raise ValueError(f"evaluate.judges={self.judges} names a judge twice")
        for judge, setting, value in (
            ("gold", "evaluate.gold.model, a reward model that PPO has not seen", self.gold.model),
            ("human", "evaluate.human.path, a file of people's rankings", self.human.path),
        ):
            if judge in self.judges and value is None:
                raise ValueError(f"the judge {judge} needs {setting}: set it, or take {judge} out of evaluate.judges")
            if judge not in self.judges and value is not None:
                raise ValueError(f"evaluate.{judge} is set, but {judge} is not in evaluate.judges: add it there")
        self.llm.validate("evaluate.llm")
        self.gold.refuse_orphans("evaluate.gold")
        if self.asks_llm != (self.llm.endpoint is not None):
            raise ValueError(
                "the judge llm and evaluate.metadata need evaluate.llm.endpoint; without one of them it must not be set"
            )
        if self.human.path is not None and not Path(self.human.path).is_file():
            raise ValueError(f"evaluate.human.path={self.human.path}: no such file")


@dataclass
class EvaluateRewardConfig(GoldConfig):
    """Evaluation of a reward model on held-out rankings, after its training or separately. All ours."""

    model: str | None = None
    """Reward model of the evaluate_reward stage: a folder or a model on the Hub; null uses the run's own."""
    max_prompts: PositiveInt | None = None
    """Maximum number of prompts per split in the evaluate_reward stage, spread evenly over it; null uses all. Ours."""
    sft_likelihood: bool = True
    """Also evaluate the SFT model's likelihood of an answer as a baseline; costs a pass of the SFT model over the test
    split.
    """
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "evaluate_reward")
        self.refuse_orphans("evaluate_reward")
