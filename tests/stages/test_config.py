"""The configuration: every field has one dotted name and a description, and whoever mistypes one is told what was
meant.

pytest tests/stages/test_config.py
"""

import ast
import dataclasses
import inspect
import io
import itertools
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_origin

import pytest

from data.config import SourceConfig
from data.numbers import number_type
from ppo.reward_terms import RewardTerm
from stages.config import RunConfig, parse_config
from stages.config_files import check_config_file

CONFIGS = Path(__file__).parents[2] / "configs"


def parse(*arguments: str) -> RunConfig:
    return parse_config("stages.x", "A stage.", arguments)[0]


def classes(config_type: type = RunConfig) -> list[type]:
    nested = [item.type for item in dataclasses.fields(config_type) if dataclasses.is_dataclass(item.type)]
    return [config_type, *(found for inner in nested for found in classes(inner))]  # type: ignore[arg-type]


def documented(config_type: type) -> dict[str, str]:
    """Field name to the string below it in the source, or in that of the class which it is inherited from."""
    bodies = [
        node.body
        for base in reversed(config_type.__mro__)
        if dataclasses.is_dataclass(base)
        for node in ast.parse(textwrap.dedent(inspect.getsource(base))).body
        if isinstance(node, ast.ClassDef)
    ]
    return {
        node.target.id: inspect.cleandoc(after.value.value)
        for body in bodies
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


def leaves(config_type: type = RunConfig, prefix: str = "") -> dict[str, str]:
    """Dotted name of every field that is no section to its description."""
    found = {}
    for item in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(item.type):
            found |= leaves(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            found[prefix + item.name] = documented(config_type).get(item.name, "")
    return found


@pytest.mark.parametrize("config_type", classes(), ids=lambda found: found.__name__)
def test_every_field_has_a_description(config_type: type) -> None:
    assert config_type.__doc__
    assert not (config_type.__doc__ or "").startswith(f"{config_type.__name__}("), (
        "a docstring of its own, not the generated one"
    )
    assert set(documented(config_type)) == {item.name for item in dataclasses.fields(config_type)}
    assert all(len(text) >= 3 for text in documented(config_type).values())


ORIGIN = re.compile(r"\b[Oo]urs\b|\b3\.\d\b|\b[CE]\.\d|\b[Ss]ection \d|\b[Aa]ppendix [A-E]")
"""How a description says where a default comes from: the paper's section, or ours."""


def test_every_number_and_choice_says_whether_its_default_is_the_papers_or_ours() -> None:
    for config_type in [*classes(), SourceConfig, RewardTerm]:
        for item in dataclasses.fields(config_type):
            optional = item.default is None and config_type is SourceConfig  # the format's own default
            if (number_type(item.type) or get_origin(item.type) is Literal) and not optional:
                text = " ".join(documented(config_type)[item.name].split())
                assert ORIGIN.search(text), f"{config_type.__name__}.{item.name}: {text}"


def test_help_lists_every_field_with_its_description(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    listed = " ".join(capsys.readouterr().out.split())
    for name, text in leaves().items():
        description = " ".join(text.split())
        assert re.search(rf"--{re.escape(name)}\+? \S+ {re.escape(description)} \(", listed), name


def test_a_field_is_set_by_its_dotted_name() -> None:
    config = parse(
        "--ppo.kl_coef",
        "0.05",
        "--model.lora.rank=4",
        "--seed",
        "3",
        "--data.prompts",
        "[a.jsonl, b.jsonl]",
        "--ppo.whiten_advantages",
        "false",
    )
    assert (config.ppo.kl_coef, config.model.lora.rank, config.seed) == (0.05, 4, 3)
    assert config.data.prompts == ["a.jsonl", "b.jsonl"]
    assert config.ppo.whiten_advantages is False
    assert config.ppo.batch_size == RunConfig().ppo.batch_size


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("run_name: mine\nppo:\n  kl_coef: 0.5\n  clip_range: 0.3\nmodel: {lora: {rank: 3}}\n")
    config = parse("--config", str(file), "--ppo.kl_coef", "0.7")
    assert (config.run_name, config.ppo.kl_coef, config.ppo.clip_range, config.model.lora.rank) == ("mine", 0.7, 0.3, 3)
    assert config.ppo.gae_lambda == RunConfig().ppo.gae_lambda
    assert config.model.lora.alpha == RunConfig().model.lora.alpha


def test_a_later_list_replaces_an_earlier_one_without_taking_fields_from_its_terms(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("ppo: {rewards: [{kind: length, weight: -0.1, name: short}, {weight: -2}]}\n")
    second.write_text("ppo: {rewards: [{kind: model}, {kind: length}]}\n")
    plain, given = [RewardTerm(), RewardTerm("length")], "[{kind: model}, {kind: length}]"
    before = ["--config", str(first)]
    assert parse(*before, "--config", str(second)).ppo.rewards == plain
    assert parse(*before, "--ppo.rewards", given).ppo.rewards == plain
    assert parse(*before, f"--ppo.rewards={given}").ppo.rewards == plain
    one_more = parse(*before, "--ppo.rewards+", "{kind: length, name: more}").ppo.rewards
    assert [(term.kind, term.weight) for term in one_more] == [("length", -0.1), ("model", -2.0), ("length", 1.0)]
    assert [term.weight for term in parse(*before, "--ppo.rewards.weight", "3").ppo.rewards] == [-0.1, 3.0]


def test_a_rate_in_yamls_short_notation_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sft: {learning_rate: 1e-5}\n")
    assert parse("--config", str(file)).sft.learning_rate == 1e-5


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "x.yaml"
    (tmp_path / "base").mkdir()
    file.write_text("runs_folder: ~/runs\nppo: {rewards: [{kind: model}, {kind: model, path: ~/base}]}\n")
    config = parse_config("x", "", ["--config", str(file), "--model.base", "~/base"])[0]
    assert config.runs_folder == f"{tmp_path}/runs"
    assert config.model.base == config.ppo.rewards[1].path == f"{tmp_path}/base"


def test_nothing_at_all_gives_the_defaults_and_force_is_no_part_of_them() -> None:
    assert parse_config("stages.x", "", []) == (RunConfig(), {"force": False})
    assert parse_config("stages.x", "", ["--force"]) == (RunConfig(), {"force": True})


def test_a_command_line_leaves_nothing_behind_for_the_next_although_they_share_a_parser() -> None:
    first = parse("--data.sources.x.format", "oasst", "--data.rankings", "[x]", "--ppo.rewards", "[{kind: model}]")
    first.data.sources["y"], first.model.lora.rank = SourceConfig(), 99
    second = parse()
    second.data.pretraining.append("more")
    second.ppo.rewards.append(RewardTerm("length"))
    assert parse() == RunConfig()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_that_comes_with_the_project_is_valid(file: Path) -> None:
    assert parse("--config", str(file)).run_name == file.stem


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence on stderr."""
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    return error.removeprefix("error: ").rstrip()


@pytest.mark.parametrize(
    ("arguments", "key", "meant"),
    [
        (["--ppo.kl_coeff", "1"], "ppo.kl_coeff", "ppo.kl_coef"),
        (["--ppo.kl", "1"], "ppo.kl", "ppo.kl_coef"),
        (["--pp.kl_coef=1"], "pp.kl_coef", "ppo.kl_coef"),
        (["--kl_coef", "1"], "kl_coef", "ppo.kl_coef"),
        (["--model.lora.r", "1"], "model.lora.r", "model.lora.rank"),
        (["--model.lora_r", "1"], "model.lora_r", "model.lora.rank"),
        (["--model.torch_dtype", "bf16"], "model.torch_dtype", "model.precision"),
        (["--ppo.gamma", "0.99"], "ppo.gamma", "ppo.discount' or 'ppo.ptx_coef"),
        (["--ppo.beta", "0.1"], "ppo.beta", "ppo.kl_coef"),
        (["--model.name", "gpt2"], "model.name", "model.base"),
        (["--sft.lr", "1e-4"], "sft.lr", "sft.learning_rate"),
        (["--run_nam", "x"], "run_nam", "run_name"),
        (["--labels.weights.closenes", "1"], "labels.weights.closenes", "labels.weights.closeness"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], key: str, meant: str
) -> None:
    """Unambiguous beginnings are refused too: a run's command must mean the same when fields are added."""
    assert refused(capsys, *arguments) == f"unknown key '{key}', did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("yaml", "key", "meant"),
    [
        ("ppo:\n  kl_coeff: 0.1\n", "ppo.kl_coeff", "ppo.kl_coef"),
        ("ppo:\n  kl-coef: 0.1\n", "ppo.kl-coef", "ppo.kl_coef"),
        ("model:\n  lora: {rnk: 4}\n", "model.lora.rnk", "model.lora.rank"),
        ("runname: x\n", "runname", "run_name"),
        ("smaples: {temperature: 2.0}\n", "smaples.temperature", "samples.temperature"),
        ("kl_coef: 0.1\n", "kl_coef", "ppo.kl_coef"),
    ],
)
def test_an_unknown_key_in_yaml_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, yaml: str, key: str, meant: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    assert refused(capsys, "--config", str(file)) == f"unknown key '{key}', did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--evaluate.judges", "chrf"], "evaluate.judges: expected list, found 'chrf': write [chrf]"),
        (["--data.rankings", "null"], "data.rankings: expected list, found 'None': write []"),
        (
            ["--ppo.per_device_train_batch_size", "8"],
            "unknown key 'ppo.per_device_train_batch_size'; --help lists all of them",
        ),
        (["--model.lora.lora_dropout", "0.1"], "unknown key 'model.lora.lora_dropout'; --help lists all of them"),
        (["--labels.labeler.name", "x"], "unknown key 'labels.labeler.name': labels.labeler is a value, not a section"),
        (["--sft.epochs.x", "1"], "unknown key 'sft.epochs.x': sft.epochs is a value, not a section"),
        (
            ["--data.languages=[en,"],
            "data.languages: expected list, found '[en,': remove the spaces, or quote the list",
        ),
        (["--tracking.to", "wandb"], "tracking.to: expected list, found 'wandb': write [wandb]"),
        (
            ["--evaluate.models", "{other: x}"],
            "evaluate.models: expected list, found \"{'other': 'x'}\": write a list",
        ),
        (["--sft.max_train_examples", "many"], "sft.max_train_examples: expected int or null, found 'many'"),
        (["--sft.epochs", "1.5"], "sft.epochs: expected int, found '1.5'"),
        (["--sft.epochs", "true"], "sft.epochs: expected int, found 'True'"),
        (["--seed", ""], "seed: expected int, found ''"),
        (["--data.sources", "{mine: {weight: much}}"], "weight: expected float or null, found 'much'"),
        (
            ["--data.sources", "{mine: rows.jsonl}"],
            "data.sources: expected a name and a section of fields under it, found 'rows.jsonl'",
        ),
        (["--ppo.rewards", "[length]"], "ppo.rewards: expected a section of fields, found 'length'"),
        (["--model.lora", "4"], "model.lora: expected a section of fields, found '4'"),
        (["--data.sources", "{mine: {formt: oasst}}"], "unknown key 'formt', did you mean 'format'?"),
        (["--data.sources", "{mine: {path: x}}"], "unknown key 'path'; --help lists all of them"),
    ],
)
def test_a_value_of_another_type_is_told_in_a_few_words(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert refused(capsys, *arguments) == sentence


def test_a_sources_settings_are_in_the_file_and_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data:\n  sources:\n    mine: {format: oasst, place: here.jsonl, columns: {a: b, c: null}}\n  rankings: "
        "[mine]\n"
    )
    config = parse_config("stages.x", "A stage.", ["--config", str(file), "--data.sources.mine.place", "there.jsonl"])[
        0
    ]
    assert config.data.sources["mine"] == SourceConfig(
        format="oasst", place="there.jsonl", columns={"a": "b", "c": None}
    )


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        (
            "ppo: {monitors: {kl: off}}\n",
            "ppo.monitors.kl: expected stop or warn or ignore, found False; YAML reads off, no, on and yes as",
        ),
        ("ppo: {top_k: 50}\n", "there is no ppo.top_k: roll-outs are sampled from the whole distribution, because"),
        ("ppo: {engine: hf}\n", "ppo.engine: expected native or transformers or vllm, found hf"),
    ],
)
def test_words_that_mean_something_else_here_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, yaml: str, sentence: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    assert refused(capsys, "--config", str(file)).startswith(sentence)


def test_a_key_like_no_other_points_to_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--xyzzy", "1") == "unknown key 'xyzzy'; --help lists all of them"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sft.epochs", "lots"], "sft.epochs"),
        (["--sft.epochs", "1.5"], "sft.epochs"),
        (["--ppo.kl_coef", "[1]"], "ppo.kl_coef"),
        (["--labels.labeler", "cat"], "labels.labeler"),
        (["--data.demonstrations", "3"], "data.demonstrations"),
        (["--ppo.whiten_advantages", "perhaps"], "ppo.whiten_advantages"),
        (["stray"], "stray"),
    ],
)
def test_an_ill_typed_value_is_refused_with_its_key(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert named in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("- 1\n", "is not a mapping of settings"),
        ("just words\n", "is not a mapping of settings"),
        ("", "holds no settings"),
        ("# mine\n", "holds no settings"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, yaml: str, sentence: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    with pytest.raises(ValueError, match=re.escape(f"{file}: {sentence}: ")):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("yaml", "place"),
    [
        ("sft: {epochs: 1}\nppo: {}\nsft: {learning_rate: 0.1}\n", "run.yaml:3: sft is given twice, first in line 1"),
        (
            "sft.learning_rate: 0.1\nsft: {epochs: 1}\n",
            "run.yaml:1: sft.learning_rate and the section sft of line 2 are both given: write the setting in the",
        ),
        ("model:\n  lora: {alpha: 9}\n  lora.rank: 3\n", "run.yaml:3: lora.rank and the section lora of line 2"),
        (
            "data:\n  sources:\n    a: {columns.chosen: best, columns: {prompt: q}}\n",
            "run.yaml:3: columns.chosen and the section columns of line 3 are both given",
        ),
        ("sft:\n  epochs: 1\n  epochs: 2\n", "run.yaml:3: epochs is given twice, first in line 2"),
        (
            "data:\n  sources:\n    faq: {columns: {\n      No: null, Q: prompt}}\n",
            "run.yaml:4: YAML does not read the key No as text: put it in quotes",
        ),
        ("ppo: {\n  learning_rate: 1,5e-6}\n", "run.yaml:2: 5e-6 is a number where a key is expected"),
        ("ppo: {\n  learning_rate: 0,5}\n", "run.yaml:2: 5 is a number where a key is expected"),
    ],
)
def test_a_key_that_is_duplicate_dotted_or_not_text_is_refused(tmp_path: Path, yaml: str, place: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    with pytest.raises(ValueError, match=re.escape(place)):
        parse("--config", str(file))


def test_users_own_names_may_have_dots(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    columns = "columns: {meta: prompt, meta.id: user_id}"
    file.write_text(f"data:\n  sources:\n    faq: {{path: a.jsonl, {columns}}}\n    faq.v2: {{path: b.jsonl}}\n")
    check_config_file(file)


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("ppo: {kl_coef: null}\n", "ppo.kl_coef must not be null"),
        ("data: {demonstrations: null}\n", "data.demonstrations must not be null"),
        ("model: {lora: {rank: null}}\n", "model.lora.rank must not be null"),
        ("ppo: 3\n", "ppo must be a section with fields of its own, found 3"),
        ("ppo: null\n", "ppo must be a section with fields of its own"),
    ],
)
def test_null_and_scalars_are_refused_where_they_make_no_sense(tmp_path: Path, yaml: str, sentence: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    with pytest.raises(ValueError, match=sentence):
        parse("--config", str(file))


def test_null_stays_possible_where_it_means_something(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sft: {max_train_examples: null}\nmodel: {lora: {top_layers: null}}\n")
    assert parse("--config", str(file)).sft.max_train_examples is None


GOLD = ("--evaluate.judges", "[gold]", "--evaluate.gold.model")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seed", "-1"], "seed=-1 must be at least 0"),
        (["--seed", "4294967296"], "seed=4294967296 must be at least 0 and at most 4294967295"),
        (["--run_name", "a/b"], "run_name='a/b'"),
        (["--run_name", ""], "run_name=''"),
        (["--run_name", "../up"], "run_name='../up'"),
        (["--ppo.minibatch_size", "48"], "ppo.minibatch_size=48 does not divide ppo.batch_size=512"),
        (["--ppo.max_grad_norm", "-1"], "ppo.max_grad_norm=-1.0 must be above 0, or null"),
        (["--sft.max_grad_norm", "0"], "sft.max_grad_norm=0.0 must be above 0"),
        (["--ppo.kl_coef", ".inf"], "ppo.kl_coef=inf must be a finite number, at least 0"),
        (["--sft.micro_batch_size", "7"], "sft.micro_batch_size=7 does not divide sft.batch_size=32"),
        (["--sft_baseline.micro_batch_size", "7"], "micro_batch_size=7 does not divide sft_baseline.batch_size=32"),
        (
            ["--sft_baseline.scoring.answers_per_prompt", "2", "--sft_baseline.scoring.temperature", "0"],
            "sft_baseline.scoring.answers_per_prompt=2 needs a temperature above 0",
        ),
        (["--samples.answers_per_prompt", "1"], "samples.answers_per_prompt=1 must be at least 2"),
        (["--labels.disagreement", "1"], "labels.disagreement=1.0 must be at least 0 and below 1"),
        (["--data.valid_fraction", "0.6", "--data.test_fraction", "0.4"], "data.test_fraction=0.4 must leave room"),
        (["--reward.epochs", "0"], "reward.epochs=0"),
        (["--evaluate.best_of_n", "4", "--evaluate.temperature", "0"], "evaluate.best_of_n=4 needs"),
        (["--evaluate.judges", "[gold]"], "the judge gold needs evaluate.gold.model"),
        (["--evaluate.judges", "[human]"], "the judge human needs evaluate.human.path"),
        (["--labels.llm.max_prompts", "2"], "limit the prompts that are ranked with samples.max_train_prompts"),
        (["--evaluate.judges", "[]"], "evaluate.judges is empty"),
        (["--evaluate.judges", "[chrf, chrf]"], "names a judge twice"),
        (["--evaluate.gold.model", "org/name"], "evaluate.gold is set, but gold is not in evaluate.judges"),
        (["--evaluate.models", "[sft]"], "'sft' is always compared"),
        (["--evaluate.models", "[ppo_ema]"], "evaluate.weights=ema compares as ppo anyway"),
        (["--evaluate.models", "[a/b/c]"], "evaluate.models=a/b/c: no such folder"),
        ([*GOLD, "org/gold", "--reward.base", "org/gold", "--reward.epochs", "0"], "is reward.base, on which PPO"),
        ([*GOLD, "org/gold", "--ppo.rewards", "[{kind: model}, {kind: model, path: org/gold}]"], "in ppo.rewards"),
        (["--sweep_kl.gold", "org/gold", "--reward.base", "org/gold", "--reward.epochs", "0"], "is reward.base, on"),
    ],
)
def test_contradictions_are_refused_by_the_name_of_the_field(arguments: list[str], sentence: str) -> None:
    """Every section's own validate() is reached."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse(*arguments)


@pytest.mark.parametrize("setting", [GOLD, ["--sweep_kl.gold"], ["--sweep_ptx.gold"]])
def test_the_runs_own_reward_model_is_no_gold_model_however_its_path_is_written(
    tmp_path: Path, setting: Sequence[str]
) -> None:
    (tmp_path / "demo" / "reward" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "demo" / "reward" / "model")
    for place in ("link", "demo/reward/../reward/model"):
        with pytest.raises(ValueError, match="is the run's own reward model, on which PPO was trained"):
            parse("--runs_folder", str(tmp_path), *setting, str(tmp_path / place))


def test_keys_on_the_command_line_are_text_too() -> None:
    with pytest.raises(ValueError, match=r"data\.sources\.faq\.columns: the key False is not text: put it in quotes"):
        parse("--data.sources", "{faq: {place: faq.csv, columns: {No: null}}}", "--data.prompts", "[faq]")


def test_a_config_file_is_utf_8_in_every_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {split_salt: né, languages: [en]}\n", encoding="utf-8")
    opened = io.open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, mode="r", *given, encoding=None, **named: opened(
            path, mode, *given, encoding=encoding or (None if "b" in mode else "latin-1"), **named
        ),
    )
    assert parse("--config", str(file)).data.split_salt == "né"


def test_a_config_may_come_through_a_pipe_which_can_be_read_only_once() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"run_name: piped\n")
    os.close(writer)
    try:
        assert parse("--config", f"/dev/fd/{reader}").run_name == "piped"
    finally:
        os.close(reader)
