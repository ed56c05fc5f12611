"""Stanford Alpaca: 52,000 instructions with answers, both written by text-davinci-003 from the seed tasks of
`self_instruct`.

The input, where there is one, follows the instruction. Prompts were made for training, so they count as labeler
prompts. Rows with an empty answer are left out. Each instruction is a user of its own.
"""

from typing import Any

from data.sources.adapter import Adapter, Row, need
from data.sources.common import instructions, with_input


def _record(row: Row) -> dict[str, Any]:
    given = need(row, "input", str) if row.get("input") is not None else ""
    return {"prompt": with_input(need(row, "instruction", str), given), "kind": "plain"}


ADAPTER = Adapter(
    name="alpaca",
    keys=(("instruction", "output"),),
    about="Stanford Alpaca, instructions and answers by text-davinci-003 (CC BY-NC 4.0)",
    source="labeler",
    convert=instructions(_record, answer="output"),
    hub="tatsu-lab/alpaca",
)
