"""Tables of the data report, modelled on those of the paper (Ouyang et al. 2022)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from data.language import UNDETERMINED
from reports.formats import Cell, between, counted, number, percent, plain, share, spaced
from reports.page import Table, matrix
from reports.paper import PROMPTS_PER_CUSTOMER, SET_TITLES, SIZES, USE_CASE_SHARES

Facts = Mapping[str, Any]
SPLIT_TITLES = {"train": "training", "valid": "validation", "test": "test", "heldout": "held out"}
LANGUAGES_SHOWN = 15
NO_USE_CASE = "No prompt names its use case."


def sources_table(sources: Sequence[Facts]) -> Table:
    """Every source, with the records read and kept by split; held-out texts are under test."""
    rows: list[list[Cell]] = []
    for source in sources:
        kept, read = source["kept"], source["read"]
        splits = [kept["train"], kept.get("valid", 0), kept.get("test", kept.get("heldout", 0))]
        what = (source["name"], f"{source['role']}, format {source['format']}")
        cells = [number(read), *map(number, splits), share(sum(splits), read)]
        rows.append([what, (source["place"], source["about"]), *cells])
    return Table(["Source", "Place", "Read", "Training", "Validation", "Test / held out", "Kept"], rows, words=(1,))


def splits_of(facts: Facts) -> Iterator[tuple[tuple[str, str], str, Facts]]:
    """((set, split), title, facts) of every split of every set that has rows."""
    for name, one in facts["sets"].items():
        for split, found in one["splits"].items():
            yield (name, split), f"{SET_TITLES[name]} {SPLIT_TITLES[split]}", found


def sizes_table(facts: Facts) -> Table:
    """Table 6: rows by set, split and author of the prompts."""
    rows = []
    for key, title, found in splits_of(facts):
        ours = (found["rows"]["labeler"], found["rows"]["api"])
        rows.append([title, *map(number, (*ours, sum(ours), *SIZES.get(key, (None, None))))])
    return Table(["Rows", "Labeler prompts", "API prompts", "All", "Paper: labeler", "Paper: API"], rows, quiet=(4, 5))


def users_table(facts: Facts) -> Table:
    """Table 7: prompts per user; labelers' own prompts are separate."""
    rows = []
    for key, title, numbers in splits_of(facts):
        for writer, label in (("api", "API"), ("labeler", "labeler")):
            if found := numbers["users"].get(writer):
                paper = f"{PROMPTS_PER_CUSTOMER[key]:.2f}" if writer == "api" and key in PROMPTS_PER_CUSTOMER else "–"
                cells = [number(found["count"]), f"{found['mean']:,.2f}", plain(found["median"]), number(found["max"])]
                rows.append([f"{title}, {label}", *cells, percent(found["largest_share"]), paper])
    columns = ["Prompts by", "Users", "Mean", "Median", "Max", "Largest user's share", "Paper: mean"]
    return Table(columns, rows, quiet=(6,))


def lengths_by_split(facts: Facts) -> dict[str, Facts | None]:
    """Table 8: lengths of prompts by set and split."""
    return {title: found["prompt_tokens"] for _, title, found in splits_of(facts)}


def lengths_by_use_case(facts: Facts) -> dict[str, Facts | None]:
    """Table 9: lengths of prompts by use case, of all prompts that were kept."""
    return {spaced(case): found for case, found in facts["lengths_by_use_case"].items()}


def lengths_table(title: str, groups: Mapping[str, Facts | None]) -> Table:
    """A row of statistics for each group that has any."""
    summary = ("mean", "std", "min", "25%", "50%", "75%", "max")
    rows = [
        [name, number(found["count"]), *(plain(found[key]) for key in summary)]
        for name, found in groups.items()
        if found
    ]
    return Table([title, "Count", *map(str.capitalize, summary)], rows, empty=NO_USE_CASE)


def use_cases_table(sets: Mapping[str, Facts]) -> Table:
    """Shares of use cases among the rows that name one. No rows if none does."""
    counts = pd.DataFrame({SET_TITLES[name]: found["use_cases"] for name, found in sets.items()}).fillna(0)
    unnamed = counts.loc["none"] if "none" in counts.index else counts.sum() * 0
    named = counts.drop("none", errors="ignore").sum()
    names = list(named[named > 0].index)
    shares = counts.reindex(USE_CASE_SHARES, fill_value=0) / named
    rows = [
        [spaced(case), *(percent(shares[name][case]) for name in names), percent(paper)]
        for case, paper in USE_CASE_SHARES.items()
    ]
    rows.append(["rows that name one", *(number(int(named[name])) for name in names), ""])
    without = [share(unnamed[name], named[name] + unnamed[name]) for name in names]
    rows.append(["share of rows that name none", *without, ""])
    titles = ["Use case", *names, "Paper"]
    return Table(titles, rows if names else [], quiet=(len(names) + 1,), empty=NO_USE_CASE)


def languages_table(kinds: Mapping[str, Mapping[str, int]]) -> Table:
    """Rows by the language of their prompt, of all that were kept."""
    counts = pd.DataFrame(kinds).fillna(0).astype(int).sort_index()
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    total, rest = counts.sum(), counts[LANGUAGES_SHOWN:].sum()
    shown = counts[:LANGUAGES_SHOWN].rename({UNDETERMINED: "undetermined"})
    if rest.any():
        shown.loc["others"] = rest
    rows = [
        [language, *(cell for kind in kinds for cell in (number(int(row[kind])), share(row[kind], total[kind])))]
        for language, row in shown.iterrows()
    ]
    return Table(["Language", *(title for kind in kinds for title in (kind.capitalize(), "Share"))], rows)


def removals(facts: Facts) -> list[tuple[str, str, int, int]]:
    """(kind, rule, records removed by it, records of that kind read), in the rules' order, of kinds with records.

    The kind "answers" counts answers dropped from rankings that were kept; it is left out if there are none.
    """
    return [
        (kind, rule, count, facts["read"][kind])
        for kind, rules in facts["removed"].items()
        if facts["read"][kind] and (kind != "answers" or any(rules.values()))
        for rule, count in rules.items()
    ]


def removed_table(facts: Facts) -> Table:
    """Records that each rule removed, with a pair of columns per kind; a dash if a rule does not apply to it."""
    found = {(kind, rule): (number(count), share(count, read)) for kind, rule, count, read in removals(facts)}
    kinds, rules = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))
    rows = [[spaced(rule), *(cell for kind in kinds for cell in found.get((kind, rule), ("–", "–")))] for rule in rules]
    return Table(["Rule", *(title for kind in kinds for title in (kind.capitalize(), "Share"))], rows)


def rankings_table(found: Facts) -> Table:
    """Sizes, ties and labelers of the rankings."""
    if not found["count"]:
        return Table([], [], empty="There are no rankings in the data; the labeling stages make them.")
    answers, ids = found["answers"], found["labeler_ids"]
    mean = sum(int(size) * count for size, count in answers.items()) / found["count"]
    sizes = ", ".join(f"{size}: {number(count)}" for size, count in list(answers.items())[:12])
    rows: list[list[Cell]] = [
        ["Rankings", number(found["count"]), ""],
        [("Answers per ranking (K)", sizes), number(mean), "4 to 9"],
        ["Strict pairs", number(found["strict"]), ""],
        [("Tied pairs", "not trained on"), number(found["tied"]), ""],
        ["Share of judged pairs that are ties", share(found["tied"], found["strict"] + found["tied"]), ""],
        ["Answers that were not compared", number(found["unranked"]), ""],
    ]
    rows += [[f"Given as {name}", number(count), ""] for name, count in found["forms"].items()]
    rows += [[f"By {name} labelers", number(count), ""] for name, count in found["labelers"].items()]
    rows.append(["Labelers with an id", number(ids["count"]), "about 40"])
    if ids["count"]:
        rows.append([("Rankings per labeler, median", f"max: {number(ids['max'])}"), number(float(ids["median"])), ""])
    return Table(["", "These data", "Paper"], rows, quiet=(2,))


def length_table(found: Facts) -> Table:
    """How well length predicts the order."""
    rows: list[list[Cell]] = []
    if longer := found["longer_better"]:
        title = ("Strict pairs won by the longer answer", "chance: 50%")
        rows.append([title, percent(longer["mean"]), between(longer)])
    if longest := found["longest"]:
        title = ("Longest answer ranked best", f"a random answer: {percent(longest['chance'])}")
        rows.append([title, percent(longest["best"]), "–"])
    return Table(["Length in characters", "Rate", "95% interval"], rows, empty="No pair is ordered strictly.")


def agreement_table(found: Facts | None) -> Table:
    """Agreement between labelers, beside the paper's."""
    if not found:
        return Table([], [], empty="No two labelers ranked the same answers, so agreement is unknown.")
    rates = {
        ("Agreement on pairs that both order strictly", "chance: 50%"): (found["strict"], "72.6 ± 1.5%"),
        ("Agreement with ties as a third judgment", ""): (found["three_way"], ""),
    }
    rows: list[list[Cell]] = [
        [title, percent(rate["mean"]), between(rate), number(rate["n"]), paper]
        for title, (rate, paper) in rates.items()
        if rate
    ]
    rows.append([("Kendall's tau-b, mean", "1: the same order"), number(found["tau"]), "", "", ""])
    rows.append([("Krippendorff's alpha", "1: perfect; 0: chance"), number(found["alpha"]), "", "", ""])
    where = f"{counted(found['prompts'], 'prompt')}, {counted(found['labelers'], 'labeler')}"
    return Table([where, "Value", "95% interval", "Pairs", "Paper"], rows, quiet=(4,))


def texts_table(texts: Mapping[str, Facts]) -> Table:
    """Pretraining text by source and split."""
    rows = {
        name: {
            SPLIT_TITLES[split].capitalize(): (number(one["documents"]), f"{number(one['characters'])} characters")
            for split, one in found.items()
        }
        for name, found in texts.items()
    }
    return matrix("Source", rows, tuple)


def settings_table(settings: Facts) -> Table:
    """The settings of the rules."""
    rows = [
        [f"data.{name}", ", ".join(value) or "all" if isinstance(value, list) else str(value) or "–"]
        for name, value in settings.items()
    ]
    return Table(["Setting", "Value"], rows)
