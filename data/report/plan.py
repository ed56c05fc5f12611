"""What the data stage would write, as plain text: for a dry run, which reads and curates everything and writes
nothing.
"""

from collections.abc import Sequence

from data.build import Built
from data.config import DataConfig
from data.pages import number, share
from data.records import SPLITS
from data.report.counts import removals
from data.report.page import head, without_demonstration
from data.report.rankings import ranking_facts
from data.report.removed import meaning
from data.report.tables import rows_of_source
from data.report.warnings import warnings
from data.sets import SETS, TEXT_SPLITS
from data.sources.reading import Source

SKIPPED_SHOWN = 5
OTHER_FILES = ("counts.json", "report.html", "report.md", "report_pictures/", "README.md")


def plan(built: Built, config: DataConfig) -> str:
    """Sources, rules with what each removes, sizes, warnings and files, each under its heading."""
    sizes = built.sizes()
    doubts = warnings(built, config, ranking_facts(built))
    rows = [["", *SPLITS], *([name, *(number(sizes[f"{name}_{split}"]) for split in SPLITS)] for name in SETS)]
    texts = " and ".join(f"{number(sizes[f'texts_{split}'])} {split}" for split in TEXT_SPLITS)
    sections = {
        "Sources": aligned([source_line(built, source) for source in built.sources]),
        "Rules, in order": aligned(rule_lines(built, config)),
        "Rows": [*aligned(rows), f"texts: {texts}", *filter(None, [without_demonstration(built)])],
        "Warnings": [f"- {doubt}" for doubt in doubts] or ["none"],
        **({"Malformed rows": skipped_lines(built)} if built.bad.count else {}),
        "Files": [*(f"{name}.parquet" for name, count in sizes.items() if count), *OTHER_FILES],
    }
    return (
        "\n\n".join(
            [head(built), *("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())]
        )
        + "\n"
    )


def skipped_lines(built: Built) -> list[str]:
    """The first malformed rows, for the terminal, and how many more there are."""
    shown = built.bad.examples[:SKIPPED_SHOWN]
    more = built.bad.count - len(shown)
    return [*shown, *([f"and {number(more)} more"] if more else [])]


def source_line(built: Built, source: Source) -> list[str]:
    """A source's name, role, format, rows and place."""
    read, kept = rows_of_source(built, source)
    return [source.name, source.role, source.adapter.name, f"{number(sum(kept))} of {number(read)} rows", source.place]


def rule_lines(built: Built, config: DataConfig) -> list[list[str]]:
    """Of each rule: what it is for, how many it removed, and what it means."""
    return [
        [kind, rule, number(count), share(count, read), meaning(rule, config)]
        for kind, rule, count, read in removals(built)
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns stand under one another."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
