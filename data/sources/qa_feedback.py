"""QA-Feedback (Wu et al. 2023): four sampled answers to each question and all six human comparisons of them.

The files are JSON arrays in github.com/allenai/FineGrainedRLHF, tasks/qa_feedback/data: `train_feedback.json` and
`dev_feedback.json` with the comparisons, `train_1k.json` with `question`, `passages` and an `answer` list for
supervised training.

The answers were sampled, and judged, with the question's passages in sight, so the passages are part of the prompt: a
line each, title first, white space collapsed and a heading that repeats it left out, then the question. The six
comparisons stay as they were made, pairs and ties: about one question in twenty has a cycle or a tie that does not
carry over, which no order of the four could say. Each question is a user of its own.
"""

import re
from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, need, single

PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""The order of `preference`."""
FIRST, SECOND, TIE = 1, 2, 0


def _prompt(row: Row) -> dict[str, Any]:
    question, passages = need(row, "question", str).strip(), need(row, "passages", list)
    lines = [line for line in map(_line, passages) if line]
    if not lines:
        return {"prompt": question, "use_case": "open_qa"}
    return {
        "prompt": "\n".join(["Answer the question from the passages.", "", *lines, "", f"Question: {question}"]),
        "use_case": "closed_qa",
    }


def _line(passage: object) -> str:
    """A passage, published as its title and its sentences, as one line."""
    if not isinstance(passage, list) or not all(isinstance(part, str) for part in passage):
        raise ValueError("each of 'passages' must be a list of strings: a title, then sentences")
    title, *sentences = passage or [""]
    text = "\n".join(sentences)
    # Most passages begin with their title as a heading, sometimes cut in two as if it were sentences; "Bloom is an
    # album" is not one.
    heading = re.match(r"\s+".join(map(re.escape, title.split())) + r"\s*\n", text)
    words = " ".join((text[heading.end() :] if heading else text).split())
    return ": ".join(part for part in (title.strip(), words) if part)


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    yield _prompt(row)


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    if "gold" in row:
        yield _prompt(row) | {"completion": need(row, "gold", str).strip()}
        return
    answers = need(row, "answer", list, "a list of answers")
    if not answers or not isinstance(answers[0], str):
        raise ValueError("'answer' must be a list of strings, the first of them the reference answer")
    yield _prompt(row) | {"completion": answers[0].strip()}


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    completions = [need(row, f"prediction {number}", str) for number in range(1, 5)]
    verdicts = need(row, "preference", list)
    if len(verdicts) != len(PAIRS) or not all(
        type(verdict) is int and verdict in (FIRST, SECOND, TIE) for verdict in verdicts
    ):
        raise ValueError(
            f"'preference' must hold {len(PAIRS)} verdicts, each 1 (the first is better), 2 (the second) or 0 (neither)"
        )
    judged = list(zip(PAIRS, verdicts, strict=True))
    better = [
        [first, second] if verdict == FIRST else [second, first]
        for (first, second), verdict in judged
        if verdict != TIE
    ]
    yield _prompt(row) | {
        "completions": completions,
        "preferences": better,
        "ties": [list(pair) for pair, verdict in judged if verdict == TIE],
    }


ADAPTER = Adapter(
    name="qa_feedback",
    keys=(("question", "passages"),),
    about="QA-Feedback, long answers compared pair by pair by humans (Apache-2.0)",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts), "rankings": single(_rankings)},
    files={
        "demonstrations": ("train_1k.json",),
        "prompts": ("train_feedback.json", "dev_feedback.json"),
        "rankings": ("train_feedback.json", "dev_feedback.json"),
    },
)
