"""The data report: the paper's tables for these data (Ouyang et al. 2022, tables 1 and 6 to 10), what was removed, and
the rankings. Made from `facts.json` (data/facts.py).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.language import UNDETERMINED
from reports.data_plots import figures
from reports.data_warnings import warnings
from reports.page import (
    Block,
    Box,
    Bullets,
    Cell,
    Details,
    Heading,
    Page,
    Picture,
    Quote,
    Table,
    Text,
    between,
    counted,
    number,
    percent,
    share,
)
from reports.paper import (
    AGREEMENT,
    ANSWERS_PER_RANKING,
    ENGLISH_SHARE,
    PROMPTS_PER_CUSTOMER,
    SET_TITLES,
    SIZES,
    USE_CASE_SHARES,
)

Facts = Mapping[str, Any]
SPLIT_TITLES = {"train": "training", "valid": "validation", "test": "test", "heldout": "held out"}
LANGUAGES_SHOWN = 15
NO_USE_CASE = "No prompt names its use case."
SUMMARY = ("mean", "std", "min", "25%", "50%", "75%", "max")


def write_data_report(facts: Facts, run_name: str, folder: Path) -> None:
    """Writes `report.html`, which is self-contained, and `report.md` with its plots in `report_pictures`."""
    page = Page(f"{run_name}: the data", blocks(facts), "report.html", "report.md", "report_pictures")
    page.write(folder, figures(facts))


def blocks(facts: Facts) -> list[Block]:
    """The content of the page."""
    found_warnings = warnings(facts)
    found: list[Block] = [
        Text(head(facts)),
        Box("", "Warnings", tuple(found_warnings), "worse") if found_warnings else Box("", "No warnings", (), "better"),
        Text(
            "Columns that begin with Paper are the paper's numbers (Ouyang et al. 2022), for its own data. SFT: "
            "prompts with a demonstration. RM: prompts whose answers are to be ranked. RL: API prompts. Rankings: "
            "answers that were ranked before.",
            small=True,
        ),
        Heading("Sources"),
        sources_table(facts),
        Text("Records read, and records kept by split. A few-shot prompt is one record here.", small=True),
        Heading("Sizes"),
        sizes_table(facts),
        *([Text(sentence, small=True)] if (sentence := without_demonstration(facts)) else []),
        Heading("Prompts per user"),
        users_table(facts),
        Text(
            "The paper's test set had 1.81 prompts per customer."
            + (" Users are organisations here (data.group_by)." if by_organisation(facts) else ""),
            small=True,
        ),
        Picture("prompts_per_user", "Number of users by number of prompts, all splits together, on logarithmic axes."),
        Heading("Use cases"),
        use_cases_table(facts),
        Picture("use_cases", "Shares of the prompts that name a use case, beside the paper's."),
        Heading("Lengths"),
        lengths_table("Prompts, tokens", lengths_by_split(facts)),
        Picture("prompt_lengths", "Lengths of prompts by set, all splits together, on a logarithmic axis."),
        Heading("By use case", 3),
        lengths_table("Prompts, tokens", lengths_by_use_case(facts)),
        Heading("Prompts and demonstrations", 3),
        lengths_table("Tokens", facts["lengths_by_source"].items()),
        Text(
            "In the policy's tokens, prompts with their chat template and answers with EOS. For a few-shot prompt, the "
            "longest of its examples.",
            small=True,
        ),
        Heading("Languages"),
        languages_table(facts),
        Text(f"Detected from the prompt. {ENGLISH_SHARE:.0%} of the paper's instructions were in English.", small=True),
        Picture("languages", "Prompts by language, as shares of all."),
        Heading("What was removed"),
        removed_table(facts),
        Text("Rules apply in this order; a record is counted under the first that removes it.", small=True),
        *examples(facts),
        *malformed_rows(facts),
        Heading("Rankings"),
        rankings_table(facts["rankings"]),
        Picture(
            "rankings",
            "Rankings by number of answers; judged pairs; how often the longest answer is ranked best, beside a random "
            "answer.",
        ),
    ]
    if facts["rankings"]["count"]:
        found += [
            Heading("Does length predict the order?", 3),
            length_table(facts["rankings"]),
            Heading("Do labelers agree?", 3),
            agreement_table(facts["agreement"]),
        ]
    return [*found, Heading("Pretraining text"), texts_table(facts), Heading("Settings"), settings_table(facts)]


def by_organisation(facts: Facts) -> bool:
    """Whether prompts are capped and split by organisation."""
    return bool(facts["settings"]["group_by"] == "organisation")


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
        f"{number(found['lacking'])} of {counted(found['prompts'], 'RM prompt')} have no demonstration: the simulated "
        "labeler, which compares answers with one, leaves them out of the rankings; RL uses them if they are API "
        "prompts."
    )


def sources_table(facts: Facts) -> Table:
    """Every source, with the records read and kept by split; held-out texts are under test."""
    body: list[list[Cell]] = []
    for source in facts["sources"]:
        kept = source["kept"]
        splits = [kept["train"], kept.get("valid", 0), kept.get("test", kept.get("heldout", 0))]
        what = (source["name"], f"{source['role']}, format {source['format']}")
        cells = [number(source["read"]), *map(number, splits), share(sum(splits), source["read"])]
        body.append([what, (source["place"], source["about"]), *cells])
    return Table(["Source", "Place", "Read", "Training", "Validation", "Test / held out", "Kept"], body, words=(1,))


def splits_of(facts: Facts) -> Iterable[tuple[str, str, str, Facts]]:
    """(set, split, title, facts) of every split of every set that has rows."""
    for name, found in facts["sets"].items():
        for split, numbers in found["splits"].items():
            yield name, split, f"{SET_TITLES[name]} {SPLIT_TITLES[split]}", numbers


def sizes_table(facts: Facts) -> Table:
    """Table 6: rows by set, split and author of the prompts."""
    body: list[list[Cell]] = []
    for name, split, title, found in splits_of(facts):
        labeler, api = found["rows"]["labeler"], found["rows"]["api"]
        paper = SIZES.get((name, split), (None, None))
        body.append([title, *map(number, (labeler, api, labeler + api)), *(number(count or None) for count in paper)])
    return Table(["Rows", "Labeler prompts", "API prompts", "All", "Paper: labeler", "Paper: API"], body, quiet=(4, 5))


def users_table(facts: Facts) -> Table:
    """Table 7: prompts per user; labelers' own prompts are separate."""
    body: list[list[Cell]] = []
    for name, split, title, numbers in splits_of(facts):
        for writer, label in (("api", "API"), ("labeler", "labeler")):
            if found := numbers["users"].get(writer):
                paper = PROMPTS_PER_CUSTOMER.get((name, split)) if writer == "api" else None
                cells = [number(found["count"]), f"{found['mean']:,.2f}", plain(found["median"]), number(found["max"])]
                body.append(
                    [
                        f"{title}, {label}",
                        *cells,
                        percent(found["largest_share"]),
                        f"{paper:.2f}" if paper else "–",
                    ]
                )
    columns = ["Prompts by", "Users", "Mean", "Median", "Max", "Largest user's share", "Paper: mean"]
    return Table(columns, body, quiet=(6,))


def use_cases_table(facts: Facts) -> Table:
    """Table 1: shares of use cases among the rows that name one. No rows if none does."""
    found = {name: dict(one["use_cases"]) for name, one in facts["sets"].items()}
    unnamed = {name: cases.pop("none", 0) for name, cases in found.items()}
    total = {name: sum(cases.values()) for name, cases in found.items()}
    sets = [name for name in found if total[name]]
    if not sets:
        return Table([], [], empty=NO_USE_CASE)
    body: list[list[Cell]] = [
        [
            case.replace("_", " "),
            *(share(found[name].get(case, 0), total[name]) for name in sets),
            percent(paper),
        ]
        for case, paper in USE_CASE_SHARES.items()
    ]
    body.append(["rows that name one", *(number(total[name]) for name in sets), ""])
    body.append(
        ["share of rows that name none", *(share(unnamed[name], total[name] + unnamed[name]) for name in sets), ""]
    )
    return Table(["Use case", *(SET_TITLES[name] for name in sets), "Paper"], body, quiet=(len(sets) + 1,))


def lengths_by_split(facts: Facts) -> Iterable[tuple[str, Facts]]:
    """Table 8: lengths of prompts by set and split."""
    return ((title, found["prompt_tokens"]) for _, _, title, found in splits_of(facts))


def lengths_by_use_case(facts: Facts) -> Iterable[tuple[str, Facts]]:
    """Table 9: lengths of prompts by use case, of all prompts that were kept."""
    return ((case.replace("_", " "), found) for case, found in facts["lengths_by_use_case"].items())


def lengths_table(title: str, groups: Iterable[tuple[str, Facts]]) -> Table:
    """A row of statistics for each group that has any."""
    body: list[list[Cell]] = [
        [name, number(found["count"]), *(plain(found[key]) for key in SUMMARY)] for name, found in groups if found
    ]
    return Table([title, "Count", *(key.capitalize() for key in SUMMARY)], body, empty=NO_USE_CASE)


def languages_table(facts: Facts) -> Table:
    """Rows by the language of their prompt, of all that were kept."""
    kinds = facts["languages"]
    total: dict[str, int] = {}
    for found in kinds.values():
        for language, count in found.items():
            total[language] = total.get(language, 0) + count
    shown = sorted(total, key=lambda language: (-total[language], language))[:LANGUAGES_SHOWN]
    body: list[list[Cell]] = []
    for language in [*shown, *(["others"] if len(total) > len(shown) else [])]:
        cells: list[Cell] = []
        for found in kinds.values():
            rest = sum(count for other, count in found.items() if other not in shown)
            count = rest if language == "others" else found.get(language, 0)
            cells += [number(count), share(count, sum(found.values()))]
        body.append(["undetermined" if language == UNDETERMINED else language, *cells])
    return Table(["Language", *(title for kind in kinds for title in (kind.capitalize(), "Share"))], body)


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
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    body: list[list[Cell]] = [
        [rule.replace("_", " "), *(text for kind in kinds for text in found.get((kind, rule), ("–", "–")))]
        for rule in dict.fromkeys(rule for _, rule in found)
    ]
    return Table(["Rule", *(title for kind in kinds for title in (kind.capitalize(), "Share"))], body)


def examples(facts: Facts) -> list[Block]:
    """The examples of removed records, grouped by kind and rule."""
    groups: dict[tuple[str, str], list[Block]] = {}
    for example in facts["examples"]:
        quotes = groups.setdefault((example["kind"], example["rule"]), [])
        quotes.append(Quote(example["text"], note=example["note"]))
        if example["twin"]:
            quotes.append(Quote(example["twin"], "near-duplicate of"))
    return [
        Details(f"{rule.replace('_', ' ')} ({kind}): {facts['rules'][rule]}", found)
        for (kind, rule), found in groups.items()
    ]


def malformed_rows(facts: Facts) -> list[Block]:
    """The first malformed rows that were skipped."""
    count, shown = facts["skipped"], facts["skipped_rows"]
    if not count:
        return []
    first = f"; the first {len(shown)}" if count > len(shown) else ""
    return [Heading("Malformed rows", 3), Text(f"{number(count)} skipped{first}:"), Bullets(shown)]


def rankings_table(found: Facts) -> Table:
    """Sizes, ties and labelers of the rankings."""
    if not found["count"]:
        return Table([], [], empty="There are no rankings in the data; the labeling stages make them.")
    pairs = found["strict"] + found["tied"]
    answers = sum(int(size) * count for size, count in found["answers"].items())
    sizes = ", ".join(f"{size}: {number(count)}" for size, count in list(found["answers"].items())[:12])
    low, high = ANSWERS_PER_RANKING
    ids = found["labeler_ids"]
    body: list[list[Cell]] = [
        ["Rankings", number(found["count"]), ""],
        [("Answers per ranking (K)", sizes), number(answers / found["count"]), f"{low} to {high}"],
        ["Strict pairs", number(found["strict"]), ""],
        [("Tied pairs", "not trained on"), number(found["tied"]), ""],
        ["Share of judged pairs that are ties", share(found["tied"], pairs), ""],
        ["Answers that were not compared", number(found["unranked"]), ""],
    ]
    body += [[f"Given as {name}", number(count), ""] for name, count in found["forms"].items()]
    body += [[f"By {name} labelers", number(count), ""] for name, count in found["labelers"].items()]
    body.append(["Labelers with an id", number(ids["count"]), "about 40"])
    if ids["count"]:
        body.append([("Rankings per labeler, median", f"max: {number(ids['max'])}"), number(float(ids["median"])), ""])
    return Table(["", "These data", "Paper"], body, quiet=(2,))


def length_table(found: Facts) -> Table:
    """How well length predicts the order."""
    body: list[list[Cell]] = []
    if longer := found["longer_better"]:
        title = ("Strict pairs won by the longer answer", "chance: 50%")
        body.append([title, percent(longer["mean"]), between(longer, percent)])
    if longest := found["longest"]:
        title = ("Longest answer ranked best", f"a random answer: {percent(longest['chance'])}")
        body.append([title, percent(longest["best"]), "–"])
    return Table(["Length in characters", "Rate", "95% interval"], body, empty="No pair is ordered strictly.")


def agreement_table(found: Facts | None) -> Table:
    """Agreement between labelers, beside the paper's."""
    if not found:
        return Table([], [], empty="No two labelers ranked the same answers, so agreement is unknown.")
    body: list[list[Cell]] = []
    for title, note, rate, paper in (
        ("Agreement on pairs that both order strictly", "chance: 50%", found["strict"], AGREEMENT),
        ("Agreement with ties as a third judgment", "", found["three_way"], ""),
    ):
        if rate:
            body.append([(title, note), percent(rate["mean"]), between(rate, percent), number(rate["n"]), paper])
    body.append([("Kendall's tau-b, mean", "1: the same order"), number(found["tau"]), "", "", ""])
    body.append([("Krippendorff's alpha", "1: perfect; 0: chance"), number(found["alpha"]), "", "", ""])
    where = f"{counted(found['prompts'], 'prompt')}, {counted(found['labelers'], 'labeler')}"
    return Table([where, "Value", "95% interval", "Pairs", "Paper"], body, quiet=(4,))


def texts_table(facts: Facts) -> Table:
    """Pretraining text by source and split."""
    splits = list(next(iter(facts["texts"].values())))
    body: list[list[Cell]] = [
        [
            name,
            *(
                (number(found[split]["documents"]), f"{number(found[split]['characters'])} characters")
                for split in splits
            ),
        ]
        for name, found in facts["texts"].items()
    ]
    return Table(["Source", *(SPLIT_TITLES[split].capitalize() for split in splits)], body)


def settings_table(facts: Facts) -> Table:
    """The settings of the rules."""
    body: list[list[Cell]] = [
        [f"data.{name}", ", ".join(value) or "all" if isinstance(value, list) else str(value) or "–"]
        for name, value in facts["settings"].items()
    ]
    return Table(["Setting", "Value"], body)


def plain(value: float) -> str:
    """An integer without decimals, otherwise one decimal."""
    return number(int(value)) if float(value).is_integer() else f"{value:,.1f}"
