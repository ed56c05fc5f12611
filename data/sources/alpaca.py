"""Stanford Alpaca: 52,000 instructions with answers, both written by text-davinci-003 from the seed tasks of `self_instruct`.

The input, where there is one, follows the instruction. Prompts were made for training, so they count as labeler prompts. Rows with an empty
answer are left out. Each instruction is a user of its own.
"""

from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, need, single
from data.sources.common import with_input


def _record(row: Row) -> dict[str, Any]:
    given = need(row, "input", str) if row.get("input") is not None else ""
    return {"prompt": with_input(need(row, "instruction", str), given), "kind": "plain"}


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    yield _record(row)


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    answer = need(row, "output", str).strip()
    if answer:
        yield _record(row) | {"completion": answer}


ADAPTER = Adapter(
    name="alpaca",
    about="Stanford Alpaca, instructions and answers by text-davinci-003 (CC BY-NC 4.0)",
    source="labeler",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts)},
    hub="tatsu-lab/alpaca",
)
