"""Warnings about the data, each with advice, from the facts of data/facts.py. None of them stops a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from data.intervals import FEW_PROMPTS, FEW_USERS
from data.language import UNDETERMINED
from reports.formats import between, counted, percent, spaced
from reports.paper import SET_TITLES

DOMINANT_USER = 0.5
"""Share of a set's training prompts by one user that is worth a warning."""
MANY_TIES = 0.5
"""Share of ties among judged pairs that is worth a warning."""
LENGTH_BIAS = 0.6
"""The longer answer winning at least this share of pairs, or at most 1 minus it, is worth a warning if the interval
excludes 50%.
"""
SHOWN = 5
"""Names that a warning lists."""
FEW_RL_PROMPTS = 512
"""The prompts of one PPO iteration in the paper (appendix C.4)."""
HEAVY_RULE = 0.2
"""Share of the records read, removed by one rule, that is worth a warning."""
DOMINANT_USE_CASE = 0.8
MAIN_LANGUAGE = 0.9

ADVICE = {
    "near_duplicate": "look at its examples below; if they are different prompts, raise data.near_duplicate_fraction",
    "repeated": "check whether a source is listed twice, or was exported twice",
    "over_cap": "a few users send most of the prompts; set user_id in rows that lack the true one, or raise "
    "data.max_prompts_per_group",
    "other_language": "look at its examples below, and at data.languages",
    "prompt_too_long": "raise data.max_prompt_tokens if the model's context allows it",
    "answer_too_long": "raise data.max_answer_tokens if the model's context allows it",
    "personal_data": "look at what was found below; mask it in the source to keep the rows",
    "identical_answers": "check which columns hold the answers, and how they were sampled",
    "evaluation_prompt": "look at its examples below; if they are different prompts, raise "
    "data.near_duplicate_fraction; if many users ask the same, give them one user_id if they are one, or lower "
    "data.valid_fraction and data.test_fraction",
    "over_mixture_share": "this is the cost of the sources' weights; raise the weight of the larger source, or add to "
    "the smaller one",
}
SPELLED = 10
"""Plain text that spells a special token more often than this is warned about."""
Facts = Mapping[str, Any]


def warnings(facts: Facts) -> list[str]:
    """The warnings, the most important first."""
    return [*about_records(facts), *about_sets(facts), *about_contents(facts), *about_rankings(facts)]


def about_records(facts: Facts) -> Iterator[str]:
    """What was skipped, left out or removed."""
    if count := facts["skipped"]:
        yield f"{counted(count, 'malformed row')} skipped: correct the source; the first are listed below."
    folders = dict.fromkeys((source["name"], *source["unread"]) for source in facts["sources"] if source["unread"])
    for source, *names in folders:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield (
            f"The folder of the source {source!r} also contains data that is not read: "
            f"{', '.join(names[:SHOWN])}{more}. Add each subfolder as a source; unpack or convert other files."
        )
    if facts["ignored_keys"]:
        found = ", ".join(f"{key!r} ({count:,} messages)" for key, count in facts["ignored_keys"].items())
        yield f"Only `role` and `content` of each message are used; these other keys were ignored: {found}."
    if count := facts["rankings"]["identical"]:
        yield (
            f"Identical answers were compared in {counted(count, 'judgment')} "
            f"({counted(facts['rankings']['with_identical'], 'ranking')}). Training and accuracy leave them out: "
            "check how answers were sampled or joined."
        )
    for kind, rules in facts["removed"].items():
        for rule, count in rules.items():
            # A prompt that is also a demonstration is no loss; a ranking that is there twice is a mistake.
            if count > HEAVY_RULE * facts["read"][kind] and (kind, rule) != ("prompts", "repeated"):
                yield (
                    f"{percent(count / facts['read'][kind])} of all {kind} were removed by one rule, {rule} "
                    f"({facts['rules'][rule]}): {ADVICE.get(rule, 'look at its examples')}."
                )


def about_sets(facts: Facts) -> Iterator[str]:
    """Sizes and users of the sets."""
    group, small = facts["settings"]["group_by"], []
    for name, found in facts["sets"].items():
        for split, title in (("valid", "validation"), ("test", "test")):
            count, users = sum(found["splits"][split]["rows"].values()), found["splits"][split]["groups"]
            if count < FEW_PROMPTS or users < FEW_USERS:
                small.append(f"{SET_TITLES[name]} {title} ({counted(count, 'row')} of {counted(users, 'user')})")
    if small:
        yield (
            f"Too small to tell two models apart: {', '.join(small)}. Raise data.valid_fraction and "
            f"data.test_fraction, or add users; each split needs at least {FEW_PROMPTS} rows of {FEW_USERS} users."
        )
    if facts["largest_group"] == 1 and facts["without_demonstration"]["prompts"] > 1:
        yield (
            f"Every prompt has a {group} of its own, so prompts of one {group} may be in different splits, and the cap "
            f"has no effect: set {group}_id in the rows if you know it."
        )
    for name, found in facts["sets"].items():
        largest = found["largest_user"]
        if largest and largest["share"] >= DOMINANT_USER:
            yield (
                f"One {group}, {largest['name']!r}, sent {percent(largest['share'])} of the {SET_TITLES[name]} "
                "training prompts, and will dominate the models: lower data.max_prompts_per_group."
            )
    if (count := facts["rows"]["rl_train"]) < FEW_RL_PROMPTS:
        names = {
            role: {one["name"] for one in facts["sources"] if one["role"] == role} for role in ("prompts", "rankings")
        }
        more = ", where sources of data.rankings may be listed too" if names["rankings"] - names["prompts"] else ""
        yield (
            f"Only {counted(count, 'prompt')} to train RL on, fewer than one of the paper's iterations "
            f"({FEW_RL_PROMPTS}), so that some are used more than once in it: add API prompts; they need no answers "
            f"(data.prompts{more})."
        )


def about_contents(facts: Facts) -> Iterator[str]:
    """Use cases, languages and personal data."""
    cases = {case: count for case, count in facts["sets"]["rm"]["use_cases"].items() if case != "none"}
    for case, count in cases.items():
        if count > DOMINANT_USE_CASE * sum(cases.values()):
            yield (
                f"{percent(count / sum(cases.values()))} of the prompts that name a use case are {spaced(case)}: "
                "expect weak results on other use cases, or mix in other sources."
            )
    languages = {name: count for name, count in facts["languages"]["prompts"].items() if name != UNDETERMINED}
    if languages and not facts["settings"]["languages"]:
        main = max(languages, key=languages.__getitem__)
        part = languages[main] / sum(languages.values())
        if part < MAIN_LANGUAGE:
            yield (
                f"Only {percent(part)} of the prompts are in the main language ({main}): if the others are not "
                f"intended, set data.languages to [{main}]; if they are, check that the base model was trained on them."
            )
    if found := facts.get("untrained_prompt"):
        yield (
            f"With its generation prompt, the chat template renders a question as {found[0]!r}, but before an answer "
            f"as {found[1]!r}. Training, roll-outs and evaluation use the latter; with the exported models, "
            "`add_generation_prompt=True` gives the former. To avoid this, set model.chat_template to a template in "
            "which both are the same."
        )
    for word, count in facts.get("spelled", {}).items():
        if count > SPELLED:
            yield (
                f"The pretraining text spells {word} {count:,} times; each is trained on as ordinary characters. If it "
                "separates documents, split the text there: JSON Lines with one document per row, in `text`."
            )
    if facts["settings"]["personal_data"] == "off":
        yield (
            "Training rows were not searched for personal data, which models memorise: set data.personal_data to "
            "rules or presidio."
        )


def about_rankings(facts: Facts) -> Iterator[str]:
    """Rankings from which a reward model learns little, or mainly length."""
    found = facts["rankings"]
    if not found["count"]:
        return
    pairs = found["strict"] + found["tied"]
    if found["tied"] > MANY_TIES * pairs:
        yield (
            f"{percent(found['tied'] / pairs)} of the judged pairs are ties, from which a reward model learns "
            "nothing: ask labelers to prefer one where they can, or have them compare answers that differ more."
        )
    if set(found["answers"]) == {"2"}:
        yield (
            "Every ranking has two answers: ranking 4 to 9 at a time, as the paper did, gives 6 to 36 comparisons "
            "for one reading of the prompt."
        )
    longer = found["longer_better"]
    if longer and not longer["low"] <= 0.5 <= longer["high"] and not 1 - LENGTH_BIAS < longer["mean"] < LENGTH_BIAS:
        kind = "longer" if longer["mean"] > 0.5 else "shorter"
        yield (
            f"Length predicts the order: the {kind} answer is better in "
            f"{percent(max(longer['mean'], 1 - longer['mean']))} of pairs (longer: {between(longer)}"
            f"). The reward model may learn length alone, so look at the win rate among "
            "answers of similar length."
        )
    if without := found["labeler_ids"]["rankings_without"]:
        yield (
            f"{percent(without / found['count'])} of the rankings name no labeler, so agreement between labelers "
            "cannot be measured: set labeler_id, and have two labelers rank some of the same prompts."
        )
