"""Warnings about the data, each with advice, from the facts of data/facts.py. None of them stops a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from data.intervals import FEW_PROMPTS, FEW_USERS
from data.language import UNDETERMINED
from reports.page import between, counted, percent
from reports.paper import SET_TITLES

DOMINANT_USER = 0.5
"""Share of a set's training prompts that one user may send."""
MANY_TIES = 0.5
"""Share of judged pairs."""
LENGTH_BIAS = 0.6
"""The longer answer winning at least this share of pairs, or at most 1 minus it, is worth a warning if the interval
excludes 50%.
"""
FEW_RL_PROMPTS = 512
"""The prompts of one PPO iteration in the paper (appendix C.4)."""
HEAVY_RULE = 0.2
"""Share of the records read that one rule removes."""
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
    "evaluation_prompt": "many users ask the same; give them one user_id if they are one, or lower "
    "data.valid_fraction and data.test_fraction",
    "over_mixture_share": "this is the cost of the sources' weights; raise the weight of the larger source, or add to "
    "the smaller one",
}
Facts = Mapping[str, Any]


def warnings(facts: Facts) -> list[str]:
    """The warnings, the most important first."""
    checks = (
        malformed_rows,
        identical_answers,
        heavy_rules,
        small_splits,
        single_prompts,
        dominant_users,
        few_rl_prompts,
        dominant_use_case,
        mixed_languages,
        unfiltered,
        doubtful_rankings,
    )
    return [sentence for check in checks for sentence in check(facts)]


def malformed_rows(facts: Facts) -> Iterator[str]:
    """Skipped rows, and keys of messages that are not read."""
    if count := facts["skipped"]:
        yield f"{counted(count, 'malformed row')} skipped: correct the source; the first are listed below."
    if facts["ignored_keys"]:
        found = ", ".join(f"{key!r} ({count:,} messages)" for key, count in facts["ignored_keys"].items())
        yield f"Only the role and the text of messages are read; these other keys were ignored: {found}."


def identical_answers(facts: Facts) -> Iterator[str]:
    """Judgments between identical answers."""
    if count := facts["rankings"]["identical"]:
        yield (
            f"Identical answers were compared in {counted(count, 'judgment')} "
            f"({counted(facts['rankings']['with_identical'], 'ranking')}). Training and accuracy leave them out: "
            "check how answers were sampled or joined."
        )


def heavy_rules(facts: Facts) -> Iterator[str]:
    """Rules that remove many records."""
    for kind, rules in facts["removed"].items():
        for rule, count in rules.items():
            # A prompt that is also a demonstration is no loss; a ranking that is there twice is a mistake.
            if count > HEAVY_RULE * facts["read"][kind] and (kind, rule) != ("prompts", "repeated"):
                yield (
                    f"{percent(count / facts['read'][kind])} of all {kind} were removed by one rule, {rule} "
                    f"({facts['rules'][rule]}): {ADVICE.get(rule, 'look at its examples')}."
                )


def small_splits(facts: Facts) -> Iterator[str]:
    """Validation and test splits too small for a conclusion."""
    small = []
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


def single_prompts(facts: Facts) -> Iterator[str]:
    """No user has two prompts, so the split is effectively by prompt."""
    if facts["largest_group"] == 1 and facts["without_demonstration"]["prompts"] > 1:
        group = facts["settings"]["group_by"]
        yield (
            f"Every prompt has a {group} of its own, so prompts of one {group} may be in different splits, and the cap "
            f"has no effect: set {group}_id in the rows if you know it."
        )


def dominant_users(facts: Facts) -> Iterator[str]:
    """A user with half of a training split."""
    for name, found in facts["sets"].items():
        largest = found["largest_user"]
        if largest and largest["share"] >= DOMINANT_USER:
            yield (
                f"One {facts['settings']['group_by']}, {largest['name']!r}, sent {percent(largest['share'])} of the "
                f"{SET_TITLES[name]} training prompts, and will dominate the models: lower data.max_prompts_per_group."
            )


def few_rl_prompts(facts: Facts) -> Iterator[str]:
    """Fewer RL prompts than one iteration of the paper's."""
    count = facts["rows"]["rl_train"]
    if count < FEW_RL_PROMPTS:
        yield (
            f"Only {counted(count, 'prompt')} to train RL on, fewer than one of the paper's iterations "
            f"({FEW_RL_PROMPTS}), so that some are used more than once in it: add API prompts; they need no answers "
            "(data.prompts)."
        )


def dominant_use_case(facts: Facts) -> Iterator[str]:
    """Nearly all prompts have one use case."""
    found = facts["sets"].get("rm", {"use_cases": {}})["use_cases"]
    total = sum(count for case, count in found.items() if case != "none")
    for case, count in found.items():
        if case != "none" and count > DOMINANT_USE_CASE * total:
            yield (
                f"{percent(count / total)} of the prompts that name a use case are {case.replace('_', ' ')}: expect "
                "weak results on other use cases, or mix in other sources."
            )


def mixed_languages(facts: Facts) -> Iterator[str]:
    """No main language."""
    found = {name: count for name, count in facts["languages"].get("prompts", {}).items() if name != UNDETERMINED}
    if found and not facts["settings"]["languages"]:
        language, count = max(found.items(), key=lambda item: item[1])
        if count < MAIN_LANGUAGE * sum(found.values()):
            yield (
                f"Only {percent(count / sum(found.values()))} of the prompts are in the main language ({language}): "
                f"if the others are not intended, set data.languages to [{language}]; if they are, check that the "
                "base model was trained on them."
            )


def unfiltered(facts: Facts) -> Iterator[str]:
    """No search for personal data."""
    if facts["settings"]["personal_data"] == "off":
        yield (
            "Training rows were not searched for personal data, which models memorise: set data.personal_data to "
            "rules or presidio."
        )


def doubtful_rankings(facts: Facts) -> Iterator[str]:
    """Rankings that teach little, or mainly length."""
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
            f"{percent(max(longer['mean'], 1 - longer['mean']))} of pairs (longer: {between(longer, percent)}"
            f"). The reward model may learn length alone, so look at the win rate among "
            "answers of similar length."
        )
    if without := found["labeler_ids"]["rankings_without"]:
        yield (
            f"{percent(without / found['count'])} of the rankings name no labeler, so agreement between labelers "
            "cannot be measured: set labeler_id, and have two labelers rank some of the same prompts."
        )
