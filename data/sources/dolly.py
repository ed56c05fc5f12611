"""Databricks Dolly 15k: instructions and answers that employees wrote for training, in categories after InstructGPT's.

The context, where there is one, follows the instruction. All prompts are labeler prompts; nobody says who wrote which, so each is a user of its
own. Rows with an empty answer are left out.
"""

from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, need, single
from data.sources.common import with_input

USE_CASES = {
    "brainstorming": "brainstorming",
    "classification": "classification",
    "closed_qa": "closed_qa",
    "creative_writing": "generation",
    "general_qa": "open_qa",
    "information_extraction": "extract",
    "open_qa": "open_qa",
    "summarization": "summarization",
}


def _record(row: Row) -> dict[str, Any]:
    context = need(row, "context", str) if row.get("context") is not None else ""
    record = {"prompt": with_input(need(row, "instruction", str), context), "kind": "plain"}
    category = str(row.get("category"))
    return record | ({"use_case": USE_CASES[category]} if category in USE_CASES else {})


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    yield _record(row)


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    answer = need(row, "response", str).strip()
    if answer:
        yield _record(row) | {"completion": answer}


ADAPTER = Adapter(
    name="dolly",
    about="Databricks Dolly 15k, instructions and answers by people (CC BY-SA 3.0)",
    source="labeler",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts)},
    hub="databricks/databricks-dolly-15k",
)
