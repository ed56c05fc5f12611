"""The data report: the tables of the paper for these data, what was removed, and the rankings, from facts.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports import data_tables
from reports.data_plots import figures
from reports.data_warnings import warnings
from reports.formats import counted, number
from reports.page import Page

Facts = Mapping[str, Any]
PAGE = Page("data.j2", "report.html", "report.md", "report_pictures")


def write_data_report(facts: Facts, run_name: str, folder: Path) -> None:
    """Writes `report.html`, which is self-contained, and `report.md` with its plots in `report_pictures`."""
    PAGE.write(
        folder, f"{run_name}: the data", figures(facts), facts=facts, tables=data_tables, head=head(facts),
        warnings=warnings(facts), without_demonstration=without_demonstration(facts),
    )  # fmt: skip


def head(facts: Facts) -> str:
    """The numbers of records read and kept, in one line."""
    kept = {
        "prompt": facts["without_demonstration"]["prompts"],
        "ranking": facts["rankings"]["count"],
        "document": sum(text["documents"] for found in facts["texts"].values() for text in found.values()),
    }
    parts = [
        f"{number(count)} of {counted(facts['read'][f'{what}s'], what)}"
        for what, count in kept.items()
        if facts["read"][f"{what}s"]
    ]
    skipped = f" {counted(facts['skipped'], 'malformed row')} skipped." if facts["skipped"] else ""
    return f"{counted(len(facts['sources']), 'source')} read; kept {', '.join(parts)}.{skipped}"


def without_demonstration(facts: Facts) -> str:
    """The number of RM prompts without a demonstration; empty if all have one."""
    found = facts["without_demonstration"]
    if not found["lacking"]:
        return ""
    return (
        f"{number(found['lacking'])} of {counted(found['prompts'], 'RM prompt')} have no demonstration. With "
        "labels.labeler=simulated, which compares answers with one, they get no ranking; RL uses them if they are API "
        "prompts."
    )
