"""The table of formats: what `format` of a source may be, and the functions that read its rows.

To add a format, write its row functions (instructions.py, rankings.py) and an entry here; see docs/data.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from data.sources import argilla, instructions, label_studio, oasst, rankings, rows
from data.sources.convert import Convert, Role, Row, answer_roles, first, label_rankings, prompt_of, roles


@dataclass(frozen=True)
class Format:
    """A published format."""

    name: str
    about: str  # a short description of the data, name first, with the licence
    convert: Mapping[Role, Convert]  # a role that the data cannot play is missing
    keys: tuple[tuple[str, ...], ...] = ()  # sets of keys that identify a row when another format was expected
    hub: str | None = None  # the data set on the Hub, read if a source names no place
    subset: str | None = None  # its configuration, if it has several
    split: str = "train"  # its split, unless the source names another
    anywhere: bool = False  # whether any Hub data set may have this format
    source: Literal["labeler", "api"] | None = None  # who wrote the prompts, unless the source says so; None is api
    labeler: str | None = None  # the language model that ranked the answers; None if humans did
    group: Callable[[Row], object] | None = None  # rows with the same value are converted together; None: each alone
    adjacent: bool = True  # whether the rows of a group are consecutive; if not, the whole file is held in memory
    files: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)  # the files of a folder; default: all


FEEDBACK, JUDGED = ("train_feedback.json", "dev_feedback.json"), ("finetune_truth.jsonl", "finetune_info.jsonl")
TABLE = (
    Format(
        "rows", "this project's records and trl's forms, from anyone's files or the Hub", anywhere=True,
        convert={"demonstrations": first(rows.demonstration), "prompts": first(rows.prompt),
                 "rankings": first(rows.ranking), "pretraining": first(rows.document)},
        keys=(("messages",), ("prompt", "completion"), ("chosen", "rejected"), ("prompt", "completions"),
              ("prompt", "examples")),
    ),
    Format(
        "oasst", "OpenAssistant Conversations, human replies ranked by humans (Apache-2.0)", hub="OpenAssistant/oasst1",
        convert=oasst.CONVERT, group=lambda row: str(row.get("message_tree_id")), keys=(("message_tree_id",),),
    ),
    Format(
        "qa_feedback", "QA-Feedback, long answers compared pair by pair by humans (Apache-2.0)",
        convert=roles(rankings.qa_feedback, rankings.qa_feedback_demonstration, rankings.qa_feedback_ranking),
        files={"demonstrations": ("train_1k.json",), "prompts": FEEDBACK, "rankings": FEEDBACK},
        keys=(("question", "passages"),),
    ),
    Format(
        "truthfulqa", "TruthfulQA, questions with references and answers judged true and helpful (Apache-2.0)",
        convert=roles(rankings.truthfulqa, rankings.truthfulqa_demonstration)
        | {"rankings": rankings.truthfulqa_rankings},
        files={"demonstrations": ("TruthfulQA.csv",), "prompts": ("TruthfulQA.csv",), "rankings": JUDGED},
        group=rankings.truthfulqa_question, adjacent=False, keys=(("Question", "Best Answer"),),
    ),
    Format(
        "hh_rlhf", "Anthropic's helpful and harmless dialogues, two replies compared by humans (MIT)",
        convert=roles(prompt_of(rankings.hh_rlhf), ranking=rankings.hh_rlhf), hub="Anthropic/hh-rlhf",
    ),
    Format(
        "ultrafeedback", "UltraFeedback, four models' answers rated by GPT-4 (MIT)", hub="openbmb/UltraFeedback",
        convert=answer_roles(rankings.ultrafeedback, rankings.ultrafeedback_answers), labeler="gpt-4",
        keys=(("instruction", "completions"),),
    ),
    Format(
        "ultrafeedback_binarized", "UltraFeedback as chosen and rejected messages, by GPT-4's overall score (MIT)",
        convert=roles(rankings.binarized, rankings.binarized_demonstration, rankings.binarized_ranking),
        hub="HuggingFaceH4/ultrafeedback_binarized", split="train_prefs", labeler="gpt-4",
    ),
    Format(
        "nectar", "Nectar, seven models' answers ranked by GPT-4 (Apache-2.0, its card adds: research, non-commercial)",
        convert=answer_roles(rankings.nectar, rankings.nectar_answers), labeler="gpt-4", hub="berkeley-nest/Nectar",
        keys=(("prompt", "answers"),),
    ),
    Format(
        "shp", "Stanford Human Preferences, Reddit comments compared by votes (Reddit's terms, no licence of its own)",
        convert=roles(rankings.shp) | {"rankings": rankings.shp_rankings}, hub="stanfordnlp/SHP",
        group=lambda row: str(row.get("post_id")), keys=(("history", "human_ref_A", "human_ref_B"),),
    ),
    Format(
        "summarize_feedback", "Summarize from feedback, two summaries compared by humans (no licence stated; the posts "
        "are CC BY 4.0)", hub="openai/summarize_from_feedback", subset="comparisons",
        convert=roles(rankings.summarize_feedback, ranking=rankings.summarize_feedback_ranking),
        keys=(("info", "summaries", "choice"),),
    ),
    Format(
        "dolly", "Databricks Dolly 15k, instructions and answers by people (CC BY-SA 3.0)", source="labeler",
        convert=roles(instructions.dolly, instructions.answer("response")), hub="databricks/databricks-dolly-15k",
        keys=(("instruction", "response"),),
    ),
    Format(
        "alpaca", "Stanford Alpaca, instructions and answers by text-davinci-003 (CC BY-NC 4.0)", source="labeler",
        convert=roles(instructions.alpaca, instructions.answer("output")), hub="tatsu-lab/alpaca",
        keys=(("instruction", "output"),),
    ),
    Format(
        "no_robots", "No Robots, instructions and answers by annotators (CC BY-NC 4.0)", source="labeler",
        convert=roles(prompt_of(instructions.no_robots), instructions.no_robots), hub="HuggingFaceH4/no_robots",
    ),
    Format(
        "self_instruct", "Self-Instruct's tasks by people, with the applications they are for (Apache-2.0)",
        convert={"demonstrations": instructions.self_instruct, "prompts": instructions.self_instruct_prompts},
        source="labeler", keys=(("instruction", "instances"),),
    ),
    Format(
        "sharegpt", "ShareGPT, conversations of turns with `from` and `value`, from anyone's files or the Hub "
        "(licence: the data set's own)", anywhere=True, keys=(("conversations",),),
        convert=roles(instructions.sharegpt, instructions.sharegpt_demonstration, instructions.sharegpt_ranking),
    ),
    Format(
        "label_studio", "Label Studio's JSON export of a Ranker over a List (licence: your own)",
        convert={"rankings": label_rankings(label_studio.labels)}, keys=(("data", "annotations"),),
    ),
    Format(
        "argilla", "Argilla's records with a ranking question (licence: your own)",
        convert={"rankings": label_rankings(argilla.labels)}, keys=(("fields", "responses"),),
    ),
)  # fmt: skip
FORMATS = {one.name: one for one in TABLE}
