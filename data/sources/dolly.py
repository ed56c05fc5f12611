"""Databricks Dolly 15k: instructions and answers that employees wrote for training, in categories after InstructGPT's.

The context, where there is one, follows the instruction. All prompts are labeler prompts; nobody says who wrote which,
so each is a user of its own. Rows with an empty answer are left out.
"""

from typing import Any

from data.sources.adapter import Adapter, Row, need
from data.sources.common import instructions, with_input

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


ADAPTER = Adapter(
    name="dolly",
    keys=(("instruction", "response"),),
    about="Databricks Dolly 15k, instructions and answers by people (CC BY-SA 3.0)",
    source="labeler",
    convert=instructions(_record, answer="response"),
    hub="databricks/databricks-dolly-15k",
)
