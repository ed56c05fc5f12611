"""Writes the data report: `report.html`, which stands alone, and `report.md` with its pictures in `report_pictures`."""

from pathlib import Path
from typing import Any

import numpy as np

from data.build import Built
from data.config import DataConfig
from data.pages import Cell, Table, between, counted, number, percent, share, write_pages
from data.report import tables
from data.report.agreement import Agreement, agreement_of
from data.report.paper import AGREEMENT, ANSWERS_PER_RANKING, ENGLISH_SHARE
from data.report.plots import figures
from data.report.rankings import RankingFacts, ranking_facts
from data.report.removed import examples, finder, masked, meaning
from data.report.warnings import warnings


def write_report(built: Built, config: DataConfig, run_name: str, folder: Path) -> list[str]:
    """Writes both files and the pictures. Returns the warnings, each a sentence or two for the terminal too."""
    facts = ranking_facts(built)
    doubts = warnings(built, config, facts)
    shown = context(built, config, run_name, facts, doubts)
    write_pages(
        folder,
        Path(__file__).parent / "templates",
        "report.html",
        shown,
        figures(built, config, facts),
        "report_pictures",
    )
    return doubts


def context(built: Built, config: DataConfig, run_name: str, facts: RankingFacts, doubts: list[str]) -> dict[str, Any]:
    """Everything that the templates show but for the pictures."""
    agreed = agreement_of(built) if facts.count else None
    return {
        "run_name": run_name,
        "head": head(built),
        "warnings": doubts,
        "sources": tables.sources_table(built),
        "sizes": tables.sizes_table(built),
        "without_demonstration": without_demonstration(built),
        "users": tables.users_table(built),
        "group": config.group_by,
        "use_cases": tables.use_cases_table(built),
        "lengths": tables.lengths_table(built),
        "lengths_by_use_case": tables.lengths_by_use_case_table(built),
        "lengths_by_source": tables.lengths_by_source_table(built),
        "languages": tables.languages_table(built),
        "english": f"{ENGLISH_SHARE:.0%}",
        "removed": tables.removed_table(built),
        "examples": [
            {"title": f"{rule.replace('_', ' ')} ({kind})", "meaning": meaning(rule, config), "found": found}
            for (kind, rule), found in examples(built, config).items()
        ],
        "bad": {
            "count": built.bad.count,
            "examples": [masked(sentence, finder(config)) for sentence in built.bad.examples],
        },
        "rankings": rankings_table(facts),
        "length_bias": length_table(facts),
        "agreement": agreement_table(agreed),
        "texts": tables.texts_table(built),
        "settings": tables.settings_table(config),
    }


def head(built: Built) -> str:
    """What was read and kept, in a line."""
    documents = built.documents
    kept_documents = sum(map(len, documents.splits.values()))
    read = [
        (built.pool.count, int(built.pool.kept().sum()), "prompt"),
        (built.rankings.count, int(built.rankings.kept().sum()), "ranking"),
    ]
    read.append((documents.spool.count, kept_documents, "document"))
    parts = [f"{number(kept)} of {counted(count, what)}" for count, kept, what in read if count]
    bad = f" {counted(built.bad.count, 'malformed row')} left out." if built.bad.count else ""
    return f"{counted(len(built.sources), 'source')} read; kept {', '.join(parts)}.{bad}"


def without_demonstration(built: Built) -> str:
    """How many RM prompts have no demonstration; empty if all have one."""
    pool = built.pool
    total, lacking = int(pool.kept().sum()), int((pool.kept() & ~pool.answered).sum())
    if not lacking:
        return ""
    return (
        f"{number(lacking)} of {counted(total, 'RM prompt')} have no demonstration: the simulated labeler, which "
        "compares answers with one, leaves them out of the rankings; RL uses them if they are api prompts."
    )


def rankings_table(facts: RankingFacts) -> Table:
    """What there is to learn a reward model from."""
    if not facts.count:
        return Table([], [])
    pairs = facts.strict + facts.tied
    answers = sum(size * count for size, count in facts.answers.items())
    named = [count for labeler, count in facts.by_labeler.items() if labeler]
    sizes = ", ".join(f"{size}: {number(count)}" for size, count in sorted(facts.answers.items())[:12])
    low, high = ANSWERS_PER_RANKING
    body: list[list[Cell]] = [
        ["Rankings", number(facts.count), ""],
        [("Answers in a ranking (K)", sizes), number(answers / facts.count), f"{low} to {high}"],
        ["Strict pairs", number(facts.strict), ""],
        [("Tied pairs", "nothing is learned from them"), number(facts.tied), ""],
        ["Share of judged pairs that tie", share(facts.tied, pairs), ""],
        ["Answers that nobody compared", number(facts.unranked), ""],
    ]
    for title, counts in (("Given as {}", facts.forms), ("By {} labelers", facts.labelers)):
        body += [[title.format(name), number(count), ""] for name, count in sorted(counts.items())]
    body.append(["Labelers with an id", number(len(named)), "about 40"])
    if named:
        body.append(
            [("Rankings of a labeler, median", f"most: {number(max(named))}"), number(float(np.median(named))), ""]
        )
    return Table(["", "These data", "Paper"], body, quiet=(2,))


def length_table(facts: RankingFacts) -> Table:
    """Whether length gives the order away."""
    body: list[list[Cell]] = []
    if facts.longer_better:
        longer = facts.longer_better
        body.append(
            [
                ("Strict pairs won by the longer answer", "chance: 50%"),
                percent(longer["mean"]),
                between(longer, percent),
            ]
        )
    if facts.longest_of:
        rate, chance = facts.longest_best / facts.longest_of, facts.longest_chance / facts.longest_of
        body.append([("Longest answer ranked best", f"a random answer: {percent(chance)}"), percent(rate), "–"])
    return Table(["Length in characters", "How often", "95% interval"], body)


def agreement_table(found: Agreement | None) -> Table:
    """How far labelers agree, beside the paper's."""
    if found is None:
        return Table([], [])
    body: list[list[Cell]] = []
    for title, note, rate, paper in (
        ("Agreement on pairs that both order strictly", "chance: 50%", found.strict, AGREEMENT),
        ("Agreement where a tie is a judgment too", "", found.three_way, ""),
    ):
        if rate:
            body.append([(title, note), percent(rate["mean"]), between(rate, percent), number(rate["n"]), paper])
    body.append([("Kendall's tau-b, mean", "1: the same order"), number(found.tau), "", "", ""])
    where = f"{counted(found.prompts, 'prompt')}, {counted(found.labelers, 'labeler')}"
    return Table([where, "Share", "95% interval", "Pairs", "Paper"], body, quiet=(4,))
