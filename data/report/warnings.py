"""Warnings about the data, each with what to do about it. None of them stops a run."""

from collections.abc import Callable, Iterator

import numpy as np

from data.build import Built
from data.config import DataConfig
from data.intervals import FEW_PROMPTS, FEW_USERS
from data.language import UNDETERMINED
from data.pages import between, counted, number, percent
from data.part import TEST, TRAIN, VALID
from data.records import SPLITS
from data.report.counts import (
    SPLIT_TITLES,
    TITLES,
    languages,
    members,
    part_of,
    per_group,
    present,
    removals,
    rows,
    use_cases,
)
from data.report.rankings import RankingFacts
from data.report.removed import finder, masked, meaning

DOMINANT_USER = 0.5
"""Share of a set's training prompts that one user may send."""
MANY_TIES = 0.5
"""Share of judged pairs."""
LENGTH_BIAS = 0.6
"""Accuracy of `longer is better` that is worth a warning, as is 1 less it, when the interval excludes chance."""
FEW_RL_PROMPTS = 512
"""One iteration of PPO in the paper draws as many (appendix C.4)."""
HEAVY_RULE = 0.2
"""Share of what was read that one rule removes."""
DOMINANT_USE_CASE = 0.8
MAIN_LANGUAGE = 0.9
UNNAMED_LABELERS = 0.0
"""Share of rankings without a labeler id."""

ADVICE = {
    "near_duplicate": "look at its examples below; if they are different prompts, raise data.near_duplicate_fraction",
    "repeated": "look whether a source is listed twice, or was exported twice",
    "over_cap": "a few users send most of the prompts; give user_id to rows that lack their true one, or raise "
    "data.max_prompts_per_group",
    "other_language": "look at its examples below, and at data.languages",
    "prompt_too_long": "raise data.max_prompt_tokens if the model's context allows it",
    "answer_too_long": "raise data.max_answer_tokens if the model's context allows it",
    "personal_data": "look at what was found below; mask it in the source instead of losing the rows",
    "identical_answers": "look at which columns hold the answers, and at how they were sampled",
    "evaluation_prompt": "many users ask the same; give them one user_id if they are one, or lower "
    "data.valid_fraction and data.test_fraction",
    "over_mixture_share": "the weights of the sources cost this much; raise the weight of the larger one, or bring "
    "more of the smaller",
}


def warnings(built: Built, config: DataConfig, facts: RankingFacts) -> list[str]:
    """One sentence or two for each doubt, the gravest first."""
    about_data: tuple[Callable[[Built, DataConfig], Iterator[str]], ...] = (
        skipped_rows, ignored_keys, identical_judgments, heavy_rules, small_splits, users_alone, dominant_users,
        few_rl_prompts,
        dominant_use_case, mixed_languages, unfiltered,
    )  # fmt: skip
    return [sentence for warn in about_data for sentence in warn(built, config)] + list(about_rankings(facts))


def skipped_rows(built: Built, config: DataConfig) -> Iterator[str]:
    """Malformed rows that are missing."""
    if built.bad.count:
        yield (
            f"{counted(built.bad.count, 'malformed row')} {_was(built.bad.count)} skipped: correct the source; the "
            "first are listed below."
        )


def ignored_keys(built: Built, config: DataConfig) -> Iterator[str]:
    """Keys of messages that the model does not see."""
    if built.bad.ignored:
        found = ", ".join(f"{key!r} ({number(count)} messages)" for key, count in sorted(built.bad.ignored.items()))
        yield f"Only the role and the text of messages are read; these other keys were left out: {found}."


def identical_judgments(built: Built, config: DataConfig) -> Iterator[str]:
    """Judgments between identical answers."""
    if count := int(built.rankings.identical.sum()):
        found = counted(int((built.rankings.identical > 0).sum()), "ranking")
        yield (
            f"{counted(count, 'judgment')} in {found} compare an answer with an identical one and are left out of "
            "training and accuracy: look at "
            "how answers were sampled or joined."
        )


def heavy_rules(built: Built, config: DataConfig) -> Iterator[str]:
    """Rules that remove much."""
    for kind, rule, count, read in removals(built):
        # The same prompt again, as where one source gives demonstrations and prompts, is no loss; the same ranking
        # again is a mistake.
        if count > HEAVY_RULE * read and (kind, rule) != ("prompts", "repeated"):
            advice = ADVICE.get(rule, "look at its examples")
            yield (
                f"{percent(count / read)} of all {kind} were removed by one rule, {rule} "
                f"({meaning(rule, config)}): {advice}."
            )


def small_splits(built: Built, config: DataConfig) -> Iterator[str]:
    """Validation and test splits that tell nothing."""
    small = []
    for name in present(built):
        for split in (VALID, TEST):
            mask = members(built, name, split)
            count, users = rows(part_of(built, name), mask), len(per_group(part_of(built, name), mask))
            if count < FEW_PROMPTS or users < FEW_USERS:
                small.append(
                    f"{TITLES[name]} {SPLIT_TITLES[SPLITS[split]]} ({counted(count, 'row')} of "
                    f"{counted(users, 'user')})"
                )
    if small:
        yield (
            f"Too small to tell two models apart: {', '.join(small)}. Raise data.valid_fraction and "
            "data.test_fraction, or bring more users; "
            f"each needs at least {FEW_PROMPTS} rows of {FEW_USERS} users."
        )


def users_alone(built: Built, config: DataConfig) -> Iterator[str]:
    """Nobody has two prompts, so a split by user is one by prompt."""
    counts = per_group(built.pool, built.pool.kept())
    if len(counts) > 1 and counts.max() == 1:
        yield (
            f"Every prompt has a {config.group_by} of its own, so prompts of one {config.group_by} may be in different "
            f"splits, and no cap applies: give {config.group_by}_id to rows if you know it."
        )


def dominant_users(built: Built, config: DataConfig) -> Iterator[str]:
    """One user who is half of a training split."""
    find = finder(config)
    for name in present(built):
        part, mask = part_of(built, name), members(built, name, TRAIN)
        groups, first, counts = np.unique(part.group[mask], return_index=True, return_counts=True)
        if len(groups) > 1 and counts.max() >= DOMINANT_USER * counts.sum():
            (row,) = part.spool.rows([int(np.flatnonzero(mask)[first[counts.argmax()]])])
            who, share = masked(row[f"{config.group_by}_id"], find), percent(counts.max() / counts.sum())
            yield (
                f"One {config.group_by}, {who!r}, sent {share} of the {TITLES[name]} training prompts, and the "
                "models will be theirs: "
                "lower data.max_prompts_per_group."
            )


def few_rl_prompts(built: Built, config: DataConfig) -> Iterator[str]:
    """Fewer prompts than one iteration wants."""
    count = built.sizes()["rl_train"]
    if count < FEW_RL_PROMPTS:
        yield (
            f"Only {counted(count, 'prompt')} to train RL on, fewer than one iteration of the paper's "
            f"({FEW_RL_PROMPTS}), so the policy sees each "
            "again and again: bring more api prompts; they need no answers (data.prompts)."
        )


def dominant_use_case(built: Built, config: DataConfig) -> Iterator[str]:
    """Nearly all rows ask for one thing."""
    counts = {case: count for case, count in use_cases(built.pool, built.pool.kept()).items() if case}
    total = sum(counts.values())
    for case, count in counts.items():
        if count > DOMINANT_USE_CASE * total:
            share, name = percent(count / total), case.replace("_", " ")
            yield (
                f"{share} of the prompts that name a use case are {name}: expect little of the models elsewhere, "
                "or mix in other sources."
            )


def mixed_languages(built: Built, config: DataConfig) -> Iterator[str]:
    """No language is the language."""
    found = languages(built.pool, built.pool.kept())
    del found[UNDETERMINED]
    if found and not config.languages:
        language, count = found.most_common(1)[0]
        if count < MAIN_LANGUAGE * sum(found.values()):
            yield (
                f"Only {percent(count / sum(found.values()))} of the prompts are in the main language ({language}): "
                "if the others are not meant, "
                f"set data.languages to [{language}]; if they are, check that the base model speaks them."
            )


def unfiltered(built: Built, config: DataConfig) -> Iterator[str]:
    """Nobody looked for personal data."""
    if config.personal_data == "off":
        yield (
            "Training rows were not searched for personal data, which models learn by heart: set "
            "data.personal_data to rules or presidio."
        )


def about_rankings(facts: RankingFacts) -> Iterator[str]:
    """Doubts about the rankings alone; none where there are no rankings."""
    if not facts.count:
        return
    if facts.tied_share > MANY_TIES:
        yield (
            f"{percent(facts.tied_share)} of the judged pairs are ties, from which a reward model learns nothing: "
            "ask labelers to prefer one where "
            "they can, or let them compare answers that differ more."
        )
    if set(facts.answers) == {2}:
        yield (
            "Every ranking has two answers: ranking 4 to 9 at a time, as the paper did, gives 6 to 36 comparisons "
            "for one reading of the prompt."
        )
    if (
        (longer := facts.longer_better)
        and not longer["low"] <= 0.5 <= longer["high"]
        and not 1 - LENGTH_BIAS < longer["mean"] < LENGTH_BIAS
    ):
        kind = "longer" if longer["mean"] > 0.5 else "shorter"
        rate = max(longer["mean"], 1 - longer["mean"])
        yield (
            f"Length predicts the order: the {kind} answer is the better one in {percent(rate)} of pairs (longer: "
            f"{between(longer, percent)}). The "
            "reward model may learn length alone, so read the win rate among answers of like length."
        )
    if facts.unnamed_share > UNNAMED_LABELERS:
        yield (
            f"{percent(facts.unnamed_share)} of the rankings name no labeler, so agreement between labelers cannot be "
            "measured: give labeler_id, and let two labelers rank some of the same prompts."
        )


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
