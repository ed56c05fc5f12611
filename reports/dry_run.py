"""What the data stage would read, remove and write, as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.records import SPLITS
from data.sets import SETS, TEXT_SPLITS
from reports.data import head, without_demonstration
from reports.data_tables import removals
from reports.data_warnings import warnings
from reports.formats import number, share

SKIPPED_SHOWN = 5
OTHER_FILES = ("counts.json", "facts.json", "report.html", "report.md", "report_pictures/", "README.md")


def plan(facts: Mapping[str, Any]) -> str:
    """Sources, rules with what each removes, sizes, warnings and files, each under its heading."""
    sizes = facts["rows"]
    rows = [["", *SPLITS], *([name, *(number(sizes[f"{name}_{split}"]) for split in SPLITS)] for name in SETS)]
    texts = " and ".join(f"{number(sizes[f'texts_{split}'])} {split}" for split in TEXT_SPLITS)
    rules = [
        [kind, rule, number(count), share(count, read), facts["rules"][rule]]
        for kind, rule, count, read in removals(facts)
    ]
    sections = {
        "Sources": aligned([source_line(source) for source in facts["sources"]]),
        "Rules, in order": aligned(rules),
        "Rows": [*aligned(rows), f"texts: {texts}", *filter(None, [without_demonstration(facts)])],
        "Warnings": [f"- {warning}" for warning in warnings(facts)] or ["none"],
        **({"Malformed rows": skipped_lines(facts["skipped_rows"], facts["skipped"])} if facts["skipped"] else {}),
        "Files": [*(f"{name}.parquet" for name, count in sizes.items() if count), *OTHER_FILES],
    }
    parts = ["\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items()]
    return "\n\n".join([head(facts), *parts]) + "\n"


def skipped_lines(rows: Sequence[str], count: int) -> list[str]:
    """The first malformed rows, and how many more there are."""
    shown = rows[:SKIPPED_SHOWN]
    more = count - len(shown)
    return [*shown, *([f"and {number(more)} more"] if more else [])]


def source_line(source: Mapping[str, Any]) -> list[str]:
    """A source's name, role, format, rows and place."""
    kept = f"{number(sum(source['kept'].values()))} of {number(source['read'])} rows"
    return [source["name"], source["role"], source["format"], kept, source["place"]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
