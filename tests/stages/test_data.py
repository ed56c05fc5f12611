"""The data stage as a user runs it: plans that write nothing, the configurations for public data, and what a finished
folder holds.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from data.records import SPLITS
from data.sets import SETS, read_set, set_file
from modeling.tiny import make_tiny_model
from modeling.tracking import read_metrics
from reports.data_warnings import warnings
from stages import pipeline
from stages.config import RunConfig, parse_config
from stages.data import STAGE, curated, described, dry_run
from stages.runner import run_stage

ROOT = Path(__file__).parents[2]
CONTEXT = 20_000
"""The tiny tokenizer knows few words, so that a long conversation is many thousand tokens."""
ANSWERS = (
    "It is so because of the weather.",
    "Nobody knows, not even the birds.",
    "Because.",
    "That depends on the day of the week, mostly.",
)
TOPICS = (
    "rain", "snow", "wind", "sand", "stone", "glass", "paper", "wood", "iron", "gold", "salt", "tea", "bread", "milk",
    "wool", "silk", "clay",
    "coal", "ice", "fire",
)  # fmt: skip


def questions(count: int = 60) -> Iterator[tuple[int, str]]:
    for number in range(count):
        yield (
            number,
            f"{TOPICS[number % 20].capitalize()} question {number}: why does "
            f"{TOPICS[(number * 7 + number // 20) % 20]} change?",
        )


def oasst_rows() -> Iterator[dict[str, Any]]:
    """Flat rows of the Hub's data set: a question, three ranked replies, and a follow-up with two."""
    for number, text in questions():
        tree = f"tree-{number}"

        def message(
            name: str, parent: str | None, role: str, text: str, rank: int | None, tree: str = tree
        ) -> dict[str, Any]:
            row = {
                "message_id": f"{tree}-{name}",
                "parent_id": parent and f"{tree}-{parent}",
                "message_tree_id": tree,
                "text": text,
                "role": role,
            }
            return row | {"lang": "en", "deleted": False, "review_result": True, "synthetic": False, "rank": rank}

        yield message("q", None, "prompter", text, None)
        for rank in (2, 0, 1):
            yield message(f"a{rank}", "q", "assistant", f"{ANSWERS[rank]} ({number})", rank)
        yield message("q2", "a0", "prompter", f"And what of {TOPICS[number % 20]}?", None)
        for rank in (0, 1):
            yield message(f"b{rank}", "q2", "assistant", f"{ANSWERS[rank]} Again ({number}).", rank)


def hh_rows() -> Iterator[dict[str, Any]]:
    for number, text in questions():
        start = f"\n\nHuman: Tell me, {text}\n\nAssistant: "
        yield {"chosen": start + ANSWERS[number % 4], "rejected": start + ANSWERS[(number + 1) % 4]}


def ultrafeedback_rows() -> Iterator[dict[str, Any]]:
    for number, text in questions():

        def answer(place: int, number: int = number) -> dict[str, Any]:
            aspects = ("instruction_following", "truthfulness", "honesty", "helpfulness")
            ratings = {aspect: {"Rating": str(1 + (place + number) % 5), "Rationale": "."} for aspect in aspects}
            return {
                "model": f"m{place}",
                "response": f"{ANSWERS[place]} ({number})",
                "annotations": ratings,
                "overall_score": 7.0,
            }

        yield {"source": "x", "instruction": text, "models": [], "completions": [answer(place) for place in range(4)]}


def post(number: int, text: str) -> str:
    return f"SUBREDDIT: r/{TOPICS[number % 20]}\n\nTITLE: {text}\n\nPOST: I wonder, again and again.\n\nTL;DR:"


def tldr_rows() -> Iterator[dict[str, Any]]:
    for number, text in questions():
        yield {"prompt": post(number, text), "completion": f" {ANSWERS[number % 4]}"}


def comparison_rows() -> Iterator[dict[str, Any]]:
    """Two comparisons of the summaries of each post."""
    for number, text in questions():
        for rejected in (1, 2):
            pair = {"chosen": f" {ANSWERS[number % 4]}", "rejected": f" {ANSWERS[(number + rejected) % 4]}"}
            yield {"prompt": post(number, text)} | pair


def qa_feedback_rows() -> Iterator[dict[str, Any]]:
    for number, text in questions():
        predictions = {f"prediction {place + 1}": f"{answer} ({number})" for place, answer in enumerate(ANSWERS)}
        passages = [["Weather", "Weather\n\nIt changes.", "Often."]]
        yield {
            "question": text,
            "passages": passages,
            "gold": "Because it must.",
            "preference": [1, 2, 0, 2, 1, 1],
            "feedback": {},
        } | predictions


def truthfulqa_rows(word: str) -> Iterator[dict[str, Any]]:
    for number, text in questions():
        for place, answer in enumerate(ANSWERS):
            yes = (place + number) % 2 == 0 if word == "True" else place < 3
            yield {"prompt": f"Q: {text}\nA: {answer}\n{word}:", "completion": " yes" if yes else " no"}


def jsonl(file: Path, rows: Iterator[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, list[str]]:
    """By configuration: arguments that read rows of the published schema from here instead of the Hub."""
    oasst = jsonl(tmp_path / "oasst.jsonl", oasst_rows())
    hh = jsonl(tmp_path / "hh.jsonl", hh_rows())
    ultrafeedback = jsonl(tmp_path / "ultrafeedback.jsonl", ultrafeedback_rows())
    comparisons = jsonl(tmp_path / "comparisons.jsonl", comparison_rows())
    pq.write_table(pa.Table.from_pylist(list(tldr_rows())), tmp_path / "tldr.parquet")
    (tmp_path / "qa.json").write_text(json.dumps(list(qa_feedback_rows())))
    truthfulqa = tmp_path / "truthfulqa"
    truthfulqa.mkdir()
    jsonl(truthfulqa / "finetune_truth.jsonl", truthfulqa_rows("True"))
    jsonl(truthfulqa / "finetune_info.jsonl", truthfulqa_rows("Helpful"))
    (truthfulqa / "TruthfulQA.csv").write_text(
        "Type,Question,Best Answer\n" + "".join(f'x,"{text}",So it is\n' for _, text in questions())
    )
    return {
        "oasst": ["--data.sources.oasst.place", oasst],
        "hh_rlhf": ["--data.sources.oasst.place", oasst, "--data.sources.hh.place", hh],
        "ultrafeedback": ["--data.sources.ultrafeedback.place", ultrafeedback],
        "tldr_1b": [
            *("--data.sources.tldr.place", str(tmp_path / "tldr.parquet")),
            *("--data.sources.comparisons.place", comparisons),
        ],
        "qa_feedback": ["--data.sources.qa.place", str(tmp_path / "qa.json")],
        "truthfulqa": ["--data.sources.truthfulqa.place", str(truthfulqa)],
    }


def configured(name: str, arguments: list[str], tmp_path: Path, architecture: str = "llama") -> RunConfig:
    """A configuration of this project on local rows, with a tiny model of a long context and a text that is at hand."""
    model = make_tiny_model(tmp_path / "model", architecture)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": CONTEXT}))
    lengths = ["--data.max_prompt_tokens", str(CONTEXT // 2), "--data.max_answer_tokens", str(CONTEXT // 2)]
    local = ["--model.base", str(model), "--data.pretraining", f"[{ROOT / 'LICENSE'}]", *lengths]
    place = ["--runs_folder", str(tmp_path / "runs"), "--data.valid_fraction", "0.2", "--data.test_fraction", "0.3"]
    config, _ = parse_config(
        "test", "", ["--config", str(ROOT / "configs" / f"{name}.yaml"), *local, *place, *arguments]
    )
    return config


def planned_rows(printed: str) -> dict[str, list[int]]:
    """The plan's table of rows: set to counts by split."""
    lines = printed.split("\nRows\n")[1].split("\n\n")[0].splitlines()
    table = [line.split() for line in lines]
    assert table[0] == list(SPLITS)
    return {name: [int(count.replace(",", "")) for count in counts] for name, *counts in table[1:] if name in SETS}


@pytest.mark.parametrize("name", ["oasst", "hh_rlhf", "ultrafeedback", "tldr_1b", "qa_feedback", "truthfulqa"])
def test_the_plan_of_a_public_configuration_has_rows_in_every_set_and_writes_nothing(
    name: str, places: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(name, places[name], tmp_path)
    dry_run(config)
    planned = planned_rows(capsys.readouterr().out)
    assert list(planned) == list(SETS)
    assert all(all(counts) for counts in planned.values()), planned
    assert not (tmp_path / "runs").exists()


SMALL = """
--data.pretraining_tokens 32 --model.device cpu --model.precision float32 --labels.closeness words
--sft.max_train_examples 16 --sft.batch_size 8 --sft.micro_batch_size 8
--reward.batch_size 8 --reward.bias_demonstrations 8 --evaluate_reward.bootstrap_resamples 20
--ppo.total_episodes 16 --ppo.batch_size 8 --ppo.minibatch_size 8 --ppo.max_new_tokens 6 --ppo.warmup_iterations 1
--ppo.held_out.prompts 4 --evaluate.max_prompts 6 --evaluate.max_new_tokens 6 --evaluate.perplexity_examples 4
--evaluate.bootstrap_resamples 20
"""
"""Sizes with which a whole run takes seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"), [("tldr_1b", "gpt_neox"), ("hh_rlhf", "qwen2"), ("ultrafeedback", "qwen2")]
)
def test_every_stage_of_a_recipe_for_one_gpu_runs_on_rows_of_the_published_schema(
    name: str, architecture: str, places: dict[str, list[str]], tmp_path: Path
) -> None:
    config = configured(name, [*places[name], *SMALL.split()], tmp_path, architecture)
    if name == "tldr_1b":  # Pythia has no chat template
        (tmp_path / "model" / "chat_template.jinja").unlink()
    pipeline.work(config, force=False)
    run = tmp_path / "runs" / name
    manifest = json.loads((run / "reward" / "manifest.json").read_text())
    ranked = {ranking.prompt_id for ranking in read_set(run / "data", "rankings", "train")}
    assert manifest["headline"]["train_prompts"] == len(ranked)
    metrics = read_metrics(run / "ppo" / "metrics.jsonl")
    assert len(metrics) == 2
    assert all(("ptx_loss" in row) == (config.ppo.ptx_coef > 0) for row in metrics)
    assert abs(metrics[0]["kl"]) < 1e-5, "PPO starts at the SFT model"
    headline = json.loads((run / "evaluate" / "headline.json").read_text())
    assert headline["kl"] is not None
    assert headline["perplexity_ppo"] != headline["perplexity_sft"]
    assert (run / "report" / "index.html").is_file()


def test_a_finished_folder_holds_what_the_plan_promised_and_every_turn_of_a_tree_in_one_split(
    places: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    config = configured("oasst", places["oasst"], tmp_path)
    dry_run(config)
    planned = planned_rows(capsys.readouterr().out)
    headline = run_stage(STAGE, config)
    folder = tmp_path / "runs" / "oasst" / "data"
    for name in SETS:
        assert [len(read_set(folder, name, split)) for split in SPLITS] == planned[name]
    assert headline["sft_train"] == len(read_set(folder, "sft", "train"))
    trees = {split: {r.user_id for name in SETS for r in read_set(folder, name, split)} for split in SPLITS}
    assert len(trees["train"] | trees["valid"] | trees["test"]) == sum(map(len, trees.values())) == 60
    assert not (folder / "scratch").exists()
    assert {"report.html", "report.md", "README.md", "counts.json", "manifest.json"} <= {
        file.name for file in folder.iterdir()
    }
    loaded = load_dataset(str(folder), "rankings", cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {
        {"valid": "validation"}.get(split, split): len(read_set(folder, "rankings", split)) for split in SPLITS
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not [name for name in manifest["outputs"] if name.startswith(("report", "README", "facts"))], (
        "a picture that changed runs nothing again"
    )
    assert run_stage(STAGE, config) == headline
    assert "data: unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "rankings"),
    [
        ("oasst", ["--data.sources.oasst.place", "oasst/en_100_tree.jsonl"], 212),
        ("qa_feedback", ["--data.sources.qa.place", "qa_feedback/dev_feedback.json"], 100),
        ("truthfulqa", ["--data.sources.truthfulqa.place", "truthfulqa"], 817),
    ],
)
def test_real_rankings_pass_and_every_one_is_kept_or_accounted_for(
    name: str, arguments: list[str], rankings: int, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Of QA-Feedback's long passages, a fifth; tests/data/sources/test_qa_feedback.py reads them all."""
    place = shared_data(arguments[1])
    if name == "qa_feedback":
        (tmp_path / "rows.json").write_text(json.dumps(json.loads(place.read_text())[:rankings]))
        place = tmp_path / "rows.json"
    config = configured(name, [arguments[0], str(place)], tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    built, _ = curated(config, scratch)
    assert built.rankings.count == rankings
    assert built.rankings.kept().sum() == rankings - sum(built.removed()["rankings"].values()) > 0.8 * rankings
    assert not set_file(scratch, "sft", "train").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--data.sources.oasst.format", "oast"],
            r"data\.sources\.oasst\.format='oast' is unknown, did you mean 'oasst'\?",
        ),
        (["--data.sources.oasst.place", "nowhere.jsonl"], r"nowhere\.jsonl: no such file"),
        (["--data.rankings", "[oasstt]"], r"data\.rankings: 'oasstt': no such file or source, did you mean 'oasst'\?"),
        (["--data.sources.oasst.place", "configs/demo.yaml"], r"configs/demo\.yaml: unknown kind of file '\.yaml'"),
        (
            ["--data.languages", "[english]"],
            r"data\.languages: 'english' is no language that can be told; known are the ISO 639-1 codes",
        ),
        (
            ["--labels.labeler", "simulated", "--ppo.max_new_tokens", "50000", "--samples.max_new_tokens", "60000"],
            rf"together exceed the model's context of {CONTEXT} tokens with samples\.max_new_tokens=60000 \(longest "
            r"prompt: \d+ tokens\), ppo\.max_new_tokens=50000 \(.*: lower those settings or data\.max_prompt_tokens",
        ),
        (
            ["--ppo.max_new_tokens", "50000", "--samples.max_new_tokens", "60000"],
            rf"together exceed the model's context of {CONTEXT} tokens with ppo\.max_new_tokens=50000 \(",
        ),
        (
            ["--data.pretraining_tokens", "19999"],
            r"the heldout split of the pretraining text is too short for one example of data\.pretraining_tokens=19999",
        ),
        (
            ["--data.pretraining_tokens", "100000"],
            r"data\.pretraining_tokens=100000 is more than the model's context of 20000: lower it",
        ),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_written(
    arguments: list[str], sentence: str, places: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=sentence):
        dry_run(configured("oasst", [*places["oasst"], *arguments], tmp_path))
    assert not (tmp_path / "runs").exists()


def test_a_row_that_only_the_chat_template_refuses_is_told_at_its_place_or_skipped(tmp_path: Path) -> None:
    (tmp_path / "strict.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% "
        "endif %}"
        "{{ m['role'] + m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant<think>{% endif %}"
    )
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "So."}]}
        for _, text in questions()
    ]
    for row in rows[10], rows[30]:
        row["messages"].insert(0, system)
    place = tmp_path / "rows.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scratch").mkdir()
    config = configured(
        "smoke",
        ["--model.chat_template", str(tmp_path / "strict.jinja"), "--data.demonstrations", f"[{place}]"],
        tmp_path,
    )
    with pytest.raises(
        ValueError, match=rf"^{place}:11: the chat template refuses the role 'system' \(System role not supported\)$"
    ):
        curated(config, tmp_path / "scratch")
    config.data.bad_rows = "skip"
    built, prompts = curated(config, tmp_path / "scratch")
    assert (built.pool.count, built.bad.count) == (58, 2)
    said = "renders a question as 'userA questionassistant<think>', but before an answer as 'userA questionassistant'"
    assert any(said in sentence for sentence in warnings(described(built, prompts, config)))
