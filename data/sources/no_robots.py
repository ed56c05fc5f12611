"""No Robots: 10,000 instructions and answers that paid annotators wrote after InstructGPT's ten categories.

Prompts are conversations, some with a system message or earlier turns; the last reply is the demonstration. `Coding`,
which the paper does not have, counts as other. All are labeler prompts, each a user of its own.
"""

from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, identifier, single
from data.sources.common import answered, without_answers

USE_CASES = {
    "Generation": "generation",
    "Open QA": "open_qa",
    "Brainstorm": "brainstorming",
    "Chat": "chat",
    "Rewrite": "rewrite",
    "Summarize": "summarization",
    "Coding": "other",
    "Classify": "classification",
    "Closed QA": "closed_qa",
    "Extract": "extract",
}


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    prompt, answer = answered(row, "messages")
    record = {"prompt": prompt, "kind": "plain", "completion": answer}
    if row.get("prompt_id") is not None:
        record["prompt_id"] = identifier(row, "prompt_id")
    category = str(row.get("category"))
    yield record | ({"use_case": USE_CASES[category]} if category in USE_CASES else {})


ADAPTER = Adapter(
    name="no_robots",
    about="No Robots, instructions and answers by annotators (CC BY-NC 4.0)",
    source="labeler",
    convert={"demonstrations": single(_demonstrations), "prompts": single(without_answers(_demonstrations))},
    hub="HuggingFaceH4/no_robots",
)
