"""The configuration of a whole run: one dataclass per section, one YAML file per run; every field can be overridden by
its dotted name.
"""

import dataclasses
import difflib
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import jsonargparse

from data.config import DataConfig, SourceConfig
from data.numbers import Seed, check_numbers
from evaluation.config import EvaluateConfig, EvaluateRewardConfig
from evaluation.sweeps.config import SweepKLConfig, SweepPtxConfig
from evaluation.tax.config import TaxConfig
from labeling.config import LabelsConfig, SamplesConfig
from modeling.config import ModelConfig, ProcessesConfig, TrackingConfig
from ppo.config import PPOConfig
from ppo.reward_terms import RewardTerm
from reward.config import RewardConfig
from sft.config import SFTBaselineConfig, SFTConfig
from stages.config_files import check_config_files

STAGES = ("data", "sft", "samples", "labels", "reward", "ppo", "evaluate", "report")
"""In the order of the pipeline."""
SIDE_STAGES = ("sft_baseline_epochs", "sft_baseline")
"""Stages outside the pipeline whose results others read; `make sft_baseline` runs both."""
LONGEST_NAME = 255
"""Maximum length of a folder's name in bytes on common file systems."""


@dataclass
class RunConfig:
    """The configuration of a run."""

    run_name: str = "demo"
    """Results are in <runs_folder>/<run_name>/<stage>."""
    runs_folder: str = "runs"
    """The folder of all runs."""
    seed: Seed = 0
    """Seed of weights, sampling, shuffles and labels. Ours."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prompts, demonstrations and plain text."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The base model and how it is adapted."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """Stage 1: supervised fine-tuning."""
    sft_baseline: SFTBaselineConfig = field(default_factory=SFTBaselineConfig)
    """The supervised model to compare with, outside the pipeline."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """K answers per prompt from the SFT model."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """The labeler that ranks the answers."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Stage 2: the reward model."""
    evaluate_reward: EvaluateRewardConfig = field(default_factory=EvaluateRewardConfig)
    """Evaluation of the reward model on held-out rankings."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Stage 3: PPO-ptx."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Held-out comparison of base, SFT and PPO."""
    tax: TaxConfig = field(default_factory=TaxConfig)
    """Alignment tax: the models on public benchmarks."""
    sweep_kl: SweepKLConfig = field(default_factory=SweepKLConfig)
    """Scores against the KL to SFT; not a part of the pipeline."""
    sweep_ptx: SweepPtxConfig = field(default_factory=SweepPtxConfig)
    """Pretraining loss against reward over PPO's coefficients; not a part of the pipeline."""
    processes: ProcessesConfig = field(default_factory=ProcessesConfig)
    """Settings for runs with several processes."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where metrics are sent."""

    def validate(self) -> None:
        """Raises ValueError on the first contradiction, before anything is loaded."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.run_name):
            raise ValueError(
                f"run_name={self.run_name!r} must be letters, digits, '.', '_' and '-', as it names a folder"
            )
        if len(self.run_name) > LONGEST_NAME:
            raise ValueError(
                f"run_name has {len(self.run_name)} characters, more than the {LONGEST_NAME} of a folder's name"
            )
        check_numbers(self)
        for name, place in (
            ("model.base", self.model.base),
            ("samples.policy", self.samples.policy),
            ("reward.base", self.reward.base),
            ("evaluate_reward.model", self.evaluate_reward.model),
            ("evaluate.gold.model", self.evaluate.gold.model),
            *(("evaluate.models", place) for place in self.evaluate.places),
            *((f"tax.models[{index}]", place) for index, place in enumerate(self.tax.models)),
            ("sweep_kl.gold", self.sweep_kl.gold),
            ("sweep_ptx.gold", self.sweep_ptx.gold),
            *((f"ppo.rewards[{index}].path", term.path) for index, term in enumerate(self.ppo.rewards)),
        ):
            refuse_missing_folder(name, place)
        self.refuse_own_result("model.base", self.model.base)
        self.refuse_own_result("reward.base", self.reward.base)
        self.refuse_own_result("samples.policy", self.samples.policy)
        for name, folders, file in (
            ("samples.leave_out", self.samples.leave_out, "samples_train.jsonl"),
            ("labels.earlier", self.labels.earlier, "rankings_train.jsonl"),
        ):
            for folder in folders:
                self.refuse_own_result(name, folder)
                if not (Path(folder) / file).is_file():
                    raise ValueError(
                        f"{name}: there is no {Path(folder) / file}: give the folder of that stage in an earlier run"
                    )
        self.refuse_known_gold()
        for section in dataclasses.fields(self):
            value = getattr(self, section.name)
            if dataclasses.is_dataclass(value):
                value.validate()  # type: ignore[union-attr]
        if self.model.quantization != "none" and self.ppo.engine == "vllm":
            raise ValueError("ppo.engine=vllm does not support model.quantization: set ppo.engine=native")

    def refuse_known_gold(self) -> None:
        """Raises ValueError if a gold reward model is one that PPO was trained on."""
        own = Path(self.runs_folder) / self.run_name / "reward" / "model"
        known: list[tuple[str, str, str | None]] = [
            ("the run's own reward model", str(own), None),
            *(("in ppo.rewards", term.path, term.revision) for term in self.ppo.rewards if term.path is not None),
        ]
        if self.reward.base is not None and self.reward.epochs == 0:
            known.append(("reward.base", self.reward.base, self.reward.revision))
        for name, gold, revision in (
            ("evaluate.gold.model", self.evaluate.gold.model, self.evaluate.gold.revision),
            ("sweep_kl.gold", self.sweep_kl.gold, None),
            ("sweep_ptx.gold", self.sweep_ptx.gold, None),
        ):
            for what, place, known_revision in known:
                same = gold is not None and Path(place).resolve() == Path(gold).resolve()
                if same and (Path(place).exists() or known_revision == revision):
                    raise ValueError(
                        f"{name}={gold} is {what}, on which PPO was trained: give a reward model that was trained on "
                        "other rankings"
                    )

    def refuse_own_result(self, setting: str, place: str | None) -> None:
        """Raises ValueError if a base model is a result of this run, so that every run would change its own input."""
        root, names = Path(self.runs_folder) / self.run_name, (*STAGES, *SIDE_STAGES)
        if place and any(Path(place).resolve().is_relative_to((root / name).resolve()) for name in names):
            raise ValueError(
                f"{setting}={place} is a result of this run, which would train it again and again: copy it elsewhere, "
                "or choose another run_name"
            )


def refuse_missing_folder(name: str, place: str | None) -> None:
    """Raises ValueError for a model path that does not exist and cannot be a Hub name.

    A name of the form owner/model is taken as a Hub name unless a folder `owner` exists.
    """
    if place is None or "/" not in place or Path(place).exists():
        return
    parent = Path(place).parent
    if place.count("/") == 1 and parent.name not in ("", "..") and parent.is_dir():
        raise ValueError(
            f"{name}={place}: no such folder; since the folder {parent} is here, this is not taken for a "
            "model on the Hub: start the command in another folder, or rename that one"
        )
    if place.count("/") > 1 or parent.name in ("", ".."):
        raise ValueError(f"{name}={place}: no such folder; give a folder, or a model on the Hub as owner/name")


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser, with a suggestion in the message for an unknown key. Files are UTF-8 in every locale."""

    def parse_path(self, path: Any, *given: Any, **named: Any) -> jsonargparse.Namespace:
        """The settings in a file."""
        return self.parse_string(Path(path).read_text(encoding="utf-8"), os.path.basename(path), *given, **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one sentence and exits with 2."""
        print(f"error: {explain(message)}", file=sys.stderr)
        sys.exit(2)


REFUSED = dict.fromkeys(
    ("ppo.top_k", "ppo.top_p"),
    "roll-outs are sampled from the whole distribution, because with a truncated one the policy's log-probabilities, "
    "importance ratios and KL would be wrong; use ppo.temperature, or leave it out",
)
"""Settings that other stages have but this one does not -> the reason."""


SETTING_ALIASES: dict[str, tuple[str, ...]] = {
    "attn_implementation": ("attention",),
    "beta": ("kl_coef",),
    "dtype": ("precision",),
    "gamma": ("discount", "ptx_coef"),
    "gradient_checkpointing": ("activation_checkpointing",),
    "lam": ("gae_lambda",),
    "lora_alpha": ("alpha",),
    "lora_r": ("rank",),
    "lr": ("learning_rate",),
    "model_name": ("base",),
    "model_name_or_path": ("base",),
    "name": ("base",),
    "num_ppo_epochs": ("inner_epochs",),
    "num_train_epochs": ("epochs",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "r": ("rank",),
    "response_length": ("max_new_tokens",),
    "torch_dtype": ("precision",),
}
"""Names of settings in transformers, trl, peft and the paper -> ours."""


def explain(message: str) -> str:
    """jsonargparse's message as one sentence, with a suggestion when a key is unknown."""
    names = [*dotted_names(RunConfig), *dotted_names(SourceConfig), *dotted_names(RewardTerm)]
    sentence = " ".join(message.split()).removeprefix("error: ")
    unknown = re.search(r"unrecognized arguments: --([\w.\-]+)", sentence)
    nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.\-]+)'", sentence) or re.search(
        r"()Option '([\w.\-]+)' is not accepted", sentence
    )
    below_a_value = re.search(r"""key "([\w.]+)": .*NestedArg\(key='(\w+)'""", sentence)
    if below_a_value:
        return f"unknown key '{'.'.join(below_a_value.groups())}': {below_a_value[1]} is a value, not a section"
    key = unknown.group(1) if unknown else ".".join(part for part in nested.groups() if part) if nested else None
    if key is None:
        return wrong_type(sentence) or sentence
    if key in REFUSED:
        return f"there is no {key}: {REFUSED[key]}"
    section, _, last = key.rpartition(".")
    others = [name for name in names if not key.startswith(f"{name}.")]
    if key in names:  # a field of SourceConfig or RewardTerm, used elsewhere
        near = []
    elif last in SETTING_ALIASES and section:
        near = [f"{place}.{alias}" for place in (section, f"{section}.lora") for alias in SETTING_ALIASES[last]]
        near = [name for name in near if name in names]
    else:
        ends = {name: name.rpartition(".")[2] for name in others if "." in name or not section}
        alike = [name for name, end in ends.items() if last in end or difflib.get_close_matches(last, [end])]
        near = difflib.get_close_matches(key, alike, n=1) or [name for name, end in ends.items() if end == last][:1]
    meant = " or ".join(repr(name) for name in near)
    return f"unknown key '{key}'" + (f", did you mean {meant}?" if near else "; --help lists all of them")


def wrong_type(sentence: str) -> str | None:
    """jsonargparse's message about a value of the wrong type, shortened; None for other messages."""
    choice = re.search(r'key "([\w.]+)": Expected a typing.Literal\[(.*?)\]\. Got value: (.*)', sentence)
    if choice:
        quoted = (
            "; YAML reads off, no, on and yes as True or False unless they are quoted"
            if choice[3] in ("True", "False")
            else ""
        )
        return (
            f"{choice[1]}: expected {' or '.join(choice[2].replace(chr(39), '').split(', '))}, found "
            f"{choice[3]}{quoted}"
        )
    union = re.search(
        r'key "([\w.]+)": Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: .* '
        r"Given value: (.*)",
        sentence,
    )
    if union:
        found = re.findall(r"(?:<class '|typing\.Annotated\[)(\w+)", union.group(2))
        kinds = [kind.replace("NoneType", "null") for kind in found]
        return f"{union.group(1)}: expected {' or '.join(kinds)}, found {union.group(3)!r}"
    plain = re.search(r'key "([\w.]+)": Expected a <class \'(\w+)\'>\. Got value: ?(.*)', sentence)
    if plain:
        other = {"[": "remove the spaces, or quote the list", "{": "write a list"}
        as_list = "write []" if plain[3] == "None" else other.get(plain[3][:1], f"write [{plain[3]}]")
        advice = {"str": "; put text that YAML reads as something else in quotes", "list": f": {as_list}"}
        return f"{plain[1]}: expected {plain[2]}, found {plain[3]!r}{advice.get(plain[2], '')}"
    fields = re.search(
        r'key "([\w.]+)": (?:Expected a dot import path string:|Unable to load config) (.*?)(?: - Parser|$)', sentence
    )
    if fields:
        return f"{fields[1]}: expected a section of fields, found {fields[2].strip(chr(39))!r}"
    section = re.search(
        r'key "([\w.]+)": (?:Not a valid subclass of \w+\. Got value: (.*?) Subclass types|Problem with given '
        r"class_path \'(.*?)\': No module)",
        sentence,
    )
    return (
        f"{section[1]}: expected a name and a section of fields under it, found {section[2] or section[3]!r}"
        if section
        else None
    )


def dotted_names(config_type: type, prefix: str = "") -> Iterator[str]:
    """Every field's dotted name, as in YAML and on the command line."""
    for item in dataclasses.fields(config_type):
        yield prefix + item.name
        if dataclasses.is_dataclass(item.type):
            yield from dotted_names(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]


def refuse_nulls(namespace: Any, config_type: type, prefix: str = "") -> None:
    """Raises ValueError if a section is not a mapping, or a null is not allowed: jsonargparse accepts both."""
    for item in dataclasses.fields(config_type):
        value, name = namespace[item.name], prefix + item.name
        if dataclasses.is_dataclass(item.type):
            if not isinstance(value, jsonargparse.Namespace):
                raise ValueError(f"{name} must be a section with fields of its own, found {value!r}")
            refuse_nulls(value, item.type, f"{name}.")  # type: ignore[arg-type]
        elif value is None and type(None) not in get_args(item.type):
            raise ValueError(f"{name} must not be null")


Options = Mapping[str, Mapping[str, Any]]
"""Command-line options besides the configuration: name -> arguments of `add_argument`."""
FORCE = {"force": {"action": "store_true", "help": "Run even if nothing changed since the last result."}}
DRY_RUN = {"dry_run": {"action": "store_true", "help": "Print the plan and the counts, and write nothing."}}


def with_home(value: Any) -> Any:
    """Replaces `~/` at the start of every string by the home folder, as a shell does."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~/") else value
    if isinstance(value, list):
        return [with_home(item) for item in value]
    if isinstance(value, dict):
        return {key: with_home(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            setattr(value, item.name, with_home(getattr(value, item.name)))
    return value


def parse_config(
    program: str, description: str, arguments: Sequence[str] | None = None, options: Options = FORCE
) -> tuple[RunConfig, dict[str, Any]]:
    """(validated config, the value of each option).

    Exits with 2 and one sentence on a mistake; raises ValueError on contradictions.
    """
    check_config_files(arguments)
    parser = make_parser(program, description, tuple((name, tuple(how.items())) for name, how in options.items()))
    namespace = parser.parse_args(arguments)
    refuse_nulls(namespace, RunConfig)
    values: Any = parser.instantiate_classes(namespace)
    config = RunConfig(**{item.name: with_home(values[item.name]) for item in dataclasses.fields(RunConfig)})
    config.validate()
    return config, {option: namespace[option] for option in options}


@functools.cache
def make_parser(program: str, description: str, options: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]) -> Parser:
    """The parser of a command line, kept because jsonargparse takes longer to build it than to parse with it."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=program, description=description, default_env=False, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the fields below; later arguments override earlier ones.",
    )
    for option, how in options:
        parser.add_argument(f"--{option}", **dict(how))
    parser.add_class_arguments(RunConfig, nested_key=None, fail_untyped=True)
    for action in parser._actions:
        check = getattr(action, "_check_type", None)
        if check is not None and get_origin(getattr(action, "_typehint", None)) is list:
            action._check_type = functools.partial(replacing, check)  # type: ignore[attr-defined]
    return parser


def replacing(check: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
    """jsonargparse's check of a list, whose elements get their own defaults.

    If an earlier list of the same setting has as many elements, jsonargparse fills the fields that the new ones leave
    out from those: `{kind: model}` would keep an earlier term's weight.
    """
    whole = isinstance(value, str | list) and not append
    return check(value, append=append, cfg=None if whole else cfg, mode=mode)
