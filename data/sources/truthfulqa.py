"""TruthfulQA (Lin et al. 2022): 817 questions that people often answer wrongly, with references, and about 22 judged
answers to each.

The files are in github.com/sylinrl/TruthfulQA: `TruthfulQA.csv` (questions, `Best Answer`), and the training data of
its judges, `finetune_truth.jsonl` and `finetune_info.jsonl`, rows {"prompt": "Q: ...\\nA: ...\\nTrue:", "completion": "
yes"}.

An answer's score is 2 * true + helpful, so the truth comes first, as in the paper's own metric; equal scores tie. An
answer needs both verdicts: one that only one file knows is left out, and so is one that a file judges both ways (76
verdicts of 36,622). Answers that repeat are one. Empty answers stay: saying nothing is true and no help. The question
is the user.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from data.sources.adapter import Adapter, Row, need, single, together
from data.sources.common import dense_ranks

JUDGED = re.compile(r"Q: (?P<question>.*?)\nA: ?(?P<answer>.*)\n(?P<verdict>True|Helpful):", re.DOTALL)
VERDICTS = {"yes": 1, "no": 0}


def _judgment(row: Row) -> tuple[str, str, str, int]:
    """(question, answer, True or Helpful, 1 for yes)."""
    match = JUDGED.fullmatch(need(row, "prompt", str))
    if not match:
        raise ValueError(
            "'prompt' must read 'Q: (question)', 'A: (answer)' and 'True:' or 'Helpful:', each on a line of its own"
        )
    verdict = VERDICTS.get(need(row, "completion", str).strip())
    if verdict is None:
        raise ValueError(f"'completion' must be ' yes' or ' no', found {row['completion']!r}")
    return match["question"].strip(), match["answer"].strip(), match["verdict"], verdict


def _question(row: Row) -> object:
    """What rows of both kinds of file are gathered by. A malformed row is a group of its own, which its converter
    refuses.
    """
    match = JUDGED.fullmatch(str(row.get("prompt")))
    return match["question"].strip() if match else str(row.get("Question", row))


def _rankings(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    verdicts: dict[str, dict[str, set[int]]] = {"True": defaultdict(set), "Helpful": defaultdict(set)}
    judgments = [_judgment(row) for row in rows]
    for _, answer, kind, verdict in judgments:
        verdicts[kind][answer].add(verdict)
    question = judgments[0][0]
    if not all(verdicts.values()):
        raise ValueError(
            f"question {question!r} has judgments of one kind only: read finetune_truth.jsonl and "
            "finetune_info.jsonl together"
        )
    true, helpful = (
        {answer: min(found) for answer, found in verdicts[kind].items() if len(found) == 1}
        for kind in ("True", "Helpful")
    )
    completions = [answer for answer in true if answer in helpful]
    if len(completions) > 1:
        ranks = dense_ranks([2 * true[answer] + helpful[answer] for answer in completions])
        yield _record(question) | {"completions": completions, "ranks": ranks}


def _record(question: str) -> dict[str, Any]:
    return {"prompt": question, "user_id": question, "use_case": "open_qa"}


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    yield _record(need(row, "Question", str).strip())


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    yield _record(need(row, "Question", str).strip()) | {"completion": need(row, "Best Answer", str).strip()}


ADAPTER = Adapter(
    name="truthfulqa",
    keys=(("Question", "Best Answer"),),
    about="TruthfulQA, questions with references and answers judged true and helpful (Apache-2.0)",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts), "rankings": together(_rankings)},
    group=_question,
    adjacent=False,
    files={
        "demonstrations": ("TruthfulQA.csv",),
        "prompts": ("TruthfulQA.csv",),
        "rankings": ("finetune_truth.jsonl", "finetune_info.jsonl"),
    },
)
