"""The paper's tables for one's own data (Ouyang et al. 2022, tables 1 and 6 to 10): columns of curation in, text
out.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data.build import Built
from data.config import DataConfig
from data.embedded import ARTICLES
from data.language import UNDETERMINED
from data.pages import Cell, Table, number, percent, share
from data.part import Mask
from data.records import SPLITS, USE_CASES
from data.report.counts import (
    SPLIT_TITLES,
    TITLES,
    answer_lengths,
    languages,
    members,
    most_common,
    part_of,
    per_group,
    present,
    prompt_lengths,
    removals,
    rows,
    summary,
    use_cases,
)  # fmt: skip
from data.report.paper import PROMPTS_PER_CUSTOMER, SIZES, USE_CASE_SHARES
from data.sources.reading import Source

LANGUAGES_SHOWN = 15
EMBEDDED = {"seed": "written for this project (Apache-2.0)", "wikipedia": f"{ARTICLES.what}; {ARTICLES.licence}"}
LENGTHS = {"prompts": prompt_lengths, "demonstrations": answer_lengths}
SUMMARY = ["Mean", "Std", "Min", "25%", "50%", "75%", "Max"]


def sources_table(built: Built) -> Table:
    """Every source: what it is, what was read of it and what is left, by split."""
    body: list[list[Cell]] = []
    for source in built.sources:
        read, kept = rows_of_source(built, source)
        what = (source.name, f"{source.role}, format {source.adapter.name}")
        body.append(
            [
                what,
                (source.place, about(source)),
                number(read),
                *(number(count) for count in kept),
                share(sum(kept), read),
            ]
        )
    return Table(["Source", "Place", "Read", "Training", "Validation", "Test / held out", "Kept"], body, words=(1,))


def about(source: Source) -> str:
    """What a source is, with its licence where that is known."""
    if source.settings.format != "rows":
        return source.adapter.about
    licence = source.settings.licence or "their licence is not on record here"
    return EMBEDDED.get(source.name, f"rows that the user of this run brought; {licence}")


def rows_of_source(built: Built, source: Source) -> tuple[int, list[int]]:
    """(records read, with malformed ones; records kept in training, validation and test, held-out texts as test)."""
    skipped = built.bad.of_source[source.role, source.name]
    if source.role == "pretraining":
        documents = built.documents
        mine = documents.dataset == _code(documents.datasets, source.name)
        kept = [int(mine[documents.splits[split]].sum()) for split in ("train", "heldout")]
        return int(mine.sum()) + skipped, [kept[0], 0, kept[1]]
    part = built.rankings if source.role == "rankings" else built.pool
    mine = part.dataset == _code(part.datasets, source.name)
    if source.role != "rankings":
        mine &= part.answered == (source.role == "demonstrations")
    return int(mine.sum()) + skipped, [int((mine & part.kept(split)).sum()) for split in range(len(SPLITS))]


def sizes_table(built: Built) -> Table:
    """Table 6: rows by set, split and who wrote the prompts."""
    body: list[list[Cell]] = []
    for name in present(built):
        part = part_of(built, name)
        for split, title in _splits():
            mask = members(built, name, split)
            counts = [rows(part, mask & ~part.api), rows(part, mask & part.api)]
            paper = SIZES.get((name, SPLITS[split]))
            body.append(
                [
                    f"{TITLES[name]} {title}",
                    *map(number, [*counts, sum(counts)]),
                    *(number(count or None) for count in paper or (None, None)),
                ]
            )
    return Table(["Rows", "Labeler prompts", "API prompts", "All", "Paper: labeler", "Paper: API"], body, quiet=(4, 5))


def users_table(built: Built) -> Table:
    """Table 7: how many prompts those who sent any have sent; labelers' own prompts stand apart."""
    body: list[list[Cell]] = []
    for name in present(built):
        part = part_of(built, name)
        for split, title in _splits():
            for whose, mask in (("API", part.api), ("labeler", ~part.api)):
                counts = per_group(part, members(built, name, split) & mask)
                if len(counts):
                    paper = PROMPTS_PER_CUSTOMER.get((name, SPLITS[split])) if whose == "API" else None
                    numbers = [
                        number(len(counts)),
                        f"{counts.mean():,.2f}",
                        whole(float(np.median(counts))),
                        number(int(counts.max())),
                    ]
                    largest = share(int(counts.max()), int(counts.sum()))
                    body.append(
                        [f"{TITLES[name]} {title}, {whose}", *numbers, largest, f"{paper:.2f}" if paper else "–"]
                    )
    return Table(
        ["Prompts by", "Users", "Mean", "Median", "Max", "Largest user's share", "Paper: mean"], body, quiet=(6,)
    )


def use_cases_table(built: Built) -> Table:
    """Table 1: what is asked for; shares are of the rows that name a use case. No rows where none does."""
    found = {name: use_cases(part_of(built, name), members(built, name)) for name in present(built)}
    labelled = {name: sum(count for case, count in counts.items() if case) for name, counts in found.items()}
    sets = [name for name in found if labelled[name]]
    if not sets:
        return Table([], [])
    body: list[list[Cell]] = []
    for case in USE_CASES:
        body.append(
            [
                case.replace("_", " "),
                *(share(found[name][case], labelled[name]) for name in sets),
                percent(USE_CASE_SHARES[case]),
            ]
        )
    body.append(["rows that name one", *(number(labelled[name]) for name in sets), ""])
    body.append(
        [
            "share of rows that name none",
            *(share(found[name][None], labelled[name] + found[name][None]) for name in sets),
            "",
        ]
    )
    return Table(["Use case", *(TITLES[name] for name in sets), "Paper"], body, quiet=(len(sets) + 1,))


def lengths_table(built: Built) -> Table:
    """Table 8: lengths of prompts by set and split."""
    return _lengths(
        "Prompts, tokens",
        (
            (f"{TITLES[name]} {title}", prompt_lengths(part_of(built, name), members(built, name, split)))
            for name in present(built)
            for split, title in _splits()
        ),
    )


def lengths_by_use_case_table(built: Built) -> Table:
    """Table 9: lengths of prompts by use case, over all that curation kept."""
    pool, kept = built.pool, built.pool.kept()
    if not (pool.use_case[kept] >= 0).any():
        return Table([], [])
    return _lengths(
        "Prompts, tokens",
        (
            (case.replace("_", " "), prompt_lengths(pool, kept & (pool.use_case == place)))
            for place, case in enumerate(USE_CASES)
        ),
    )


def lengths_by_source_table(built: Built) -> Table:
    """Table 10: lengths of prompts and demonstrations by who wrote the prompt, and by source where there are
    several.
    """
    pool, kept = built.pool, built.pool.kept()
    groups: list[tuple[str, Mask]] = [("labeler prompts", kept & ~pool.api), ("API prompts", kept & pool.api)]
    if len(pool.datasets) > 1:
        groups += [(name, kept & (pool.dataset == place)) for place, name in enumerate(pool.datasets)]
    return _lengths(
        "Tokens",
        ((f"{name}: {what}", measure(pool, mask)) for name, mask in groups for what, measure in LENGTHS.items()),
    )


def languages_table(built: Built) -> Table:
    """Rows by the language of their prompt, over all that curation kept."""
    parts = {"Prompts": built.pool} | ({"Rankings": built.rankings} if built.rankings.kept().any() else {})
    found = [languages(part, part.kept()) for part in parts.values()]
    shown = [language for language, _ in most_common(sum(found[1:], found[0].copy()), LANGUAGES_SHOWN)]
    body: list[list[Cell]] = []
    for language in shown:
        cells: list[Cell] = []
        for counts in found:
            count = (
                counts[language]
                if language != "others"
                else sum(counts.values()) - sum(counts[other] for other in shown)
            )
            cells += [number(count), share(count, sum(counts.values()))]
        body.append(["undetermined" if language == UNDETERMINED else language, *cells])
    return Table(["Language", *(title for name in parts for title in (name, "Share"))], body)


def removed_table(built: Built) -> Table:
    """What each rule removed of what was read, a pair of columns for each kind of row; a dash where a rule does not
    look at that kind.
    """
    found = {(kind, rule): (number(count), share(count, read)) for kind, rule, count, read in removals(built)}
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    body: list[list[Cell]] = []
    for rule in dict.fromkeys(rule for _, rule in found):
        body.append([rule.replace("_", " "), *(text for kind in kinds for text in found.get((kind, rule), ("–", "–")))])
    return Table(["Rule", *(title for kind in kinds for title in (kind.capitalize(), "Share"))], body)


def texts_table(built: Built) -> Table:
    """Pretraining text by source and split."""
    documents = built.documents
    body: list[list[Cell]] = []
    for place, name in enumerate(documents.datasets):
        chosen = [split[documents.dataset[split] == place] for split in documents.splits.values()]
        cells = [
            (number(len(split)), f"{number(int(documents.characters[split].sum()))} characters") for split in chosen
        ]
        body.append([name, *cells])
    return Table(["Source", *(SPLIT_TITLES[split].capitalize() for split in documents.splits)], body)


def settings_table(config: DataConfig) -> Table:
    """The rules' settings, as far as they are single values."""
    names = (
        "group_by", "max_prompts_per_group", "near_duplicate_fraction", "languages", "personal_data",
        "max_prompt_tokens", "max_answer_tokens",
        "valid_fraction", "test_fraction", "split_salt", "bad_rows",
    )  # fmt: skip
    body: list[list[Cell]] = []
    for name in names:
        value = getattr(config, name)
        body.append([f"data.{name}", ", ".join(value) or "all" if isinstance(value, list) else str(value) or "–"])
    return Table(["Setting", "Value"], body)


def whole(value: float) -> str:
    """A number of whole things without decimals that say nothing."""
    return number(int(value)) if value.is_integer() else f"{value:,.1f}"


def _splits() -> Iterator[tuple[int, str]]:
    return ((place, SPLIT_TITLES[split]) for place, split in enumerate(SPLITS))


def _lengths(title: str, groups: Iterator[tuple[str, NDArray[np.int32]]]) -> Table:
    body: list[list[Cell]] = [
        [name, number(len(values)), *(whole(value) for value in summary(values))]
        for name, values in groups
        if len(values)
    ]
    return Table([title, "Count", *SUMMARY], body)


def _code(names: list[str], name: str) -> int:
    return names.index(name) if name in names else -1
