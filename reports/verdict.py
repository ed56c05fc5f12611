"""The verdict on PPO that a run's results support, and checks of whether to trust it.

Uses the contents of evaluation.json and accuracy.json. A part of the rubric carries the win if, without that part, the
interval of the win rate contains 50% or lies on the other side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data.intervals import FEW_PROMPTS, FEW_USERS, FEWEST_PROMPTS, Bootstrap
from reports.page import Interval, between, counted, number, percent, signed

BASELINES = {
    "longest": ("Choosing the longest answer", "in tokens"),
    "shortest": ("Choosing the shortest answer", "in tokens"),
    "random": ("Choosing at random", "chance level on these pairs"),
    "sft_likelihood": ("Choosing what is more likely under SFT", "log-probability of the answer"),
    "sft_likelihood_per_token": (
        "Choosing what is more likely per token under SFT",
        "mean log-probability of its tokens",
    ),
}
"""The baselines that a reward model should beat."""
CHOSEN_AFTERWARDS = "The best baseline is chosen on these same pairs, which favours it and makes the check strict."
PARTS = {
    "closeness": "closeness to the reference",
    "complete": "the bonus for ending",
    "repetition": "the penalty for repetition",
    "profanity": "the penalty for profanity",
}
"""Names of the rubric's parts in sentences."""


WEIGHTS = {"ema": "Evaluated with EMA weights", "last": "Evaluated with the last weights, not their EMA"}


def verdict(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """One sentence, and its kind: better, worse, even or unknown."""
    found = dig(evaluation, "win_rate", "sft")
    if found is None:
        text = "PPO and SFT were not compared: the evaluate stage recorded no win rate."
        return {"kind": "unknown", "text": text}
    moved = evaluation.get("kl")
    kind = side(found, 0.5) if not moved or side(moved, 0.0) == "better" else "even"
    sentence = {
        "better": "PPO is better than SFT",
        "worse": "PPO is worse than SFT",
        "even": "No difference shown between PPO and SFT",
    }[kind]
    numbers = f"PPO won {percent(found['mean'])} of comparisons (95% interval {between(found, percent)}, "
    numbers += f"{counted(found['n'], 'held-out prompt')})"
    if moved and kind != side(found, 0.5):
        numbers += f", but PPO is not shown to differ from SFT (KL {between(moved, number)} nats)"
    return {"kind": kind, "text": f"{sentence} by the rubric: {numbers}{because(kind, evaluation)}."}


def labeler_note(config: Mapping[str, Any]) -> str:
    """A note on who ranked the answers, for the reward model and for this report."""
    rubric = "a rubric (closeness to a reference answer, completeness, less repetition and profanity)"
    brought = bool(dig(config, "data", "rankings"))
    labeler = dig(config, "labels", "labeler")
    if labeler == "simulated":
        taught = " The reward model was also trained on rankings from data.rankings." if brought else ""
        return (
            f"No person ranked any answer of this run: the labeler is simulated, {rubric}.{taught} A win here is "
            "a win by that rubric only."
        )
    if labeler == "none":
        return (
            "The reward model was trained on the rankings in data.rankings. The win rates are judged by "
            f"{rubric}, not by a person."
        )
    return f"The reward model's labeler is not recorded here. The win rates are judged by {rubric}, not by a person."


def compared(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Which weights of PPO and how many answers were compared; empty without an evaluation."""
    if not evaluation:
        return ""
    weights = evaluation.get("weights") or dig(config, "evaluate", "weights")
    answers = f"{counted(evaluation['answers_per_prompt'], 'answer')} per prompt from PPO and from SFT, one from base"
    temperature = dig(config, "evaluate", "temperature")
    at = f", at temperature {temperature:g}" if isinstance(temperature, int | float) else ""
    unknown = "It is not recorded which of PPO's weights were evaluated"
    return f"{WEIGHTS.get(weights, unknown)}. {answers}{at}."


def too_few(evaluation: Mapping[str, Any], accuracy: Mapping[str, Any]) -> str:
    """A sentence where the verdict or the checks rest on few prompts or users; empty otherwise."""
    prompts, users = evaluation.get("prompts"), evaluation.get("users")
    rankings = dig(accuracy, "test", "prompts")
    found = []
    if prompts is not None and (prompts < FEW_PROMPTS or (users is not None and users < FEW_USERS)):
        of_users = f" of {counted(users, 'user')}" if users is not None else ""
        found.append(f"the comparison has {counted(prompts, 'prompt')}{of_users}")
    if rankings is not None and rankings < FEW_PROMPTS:
        found.append(f"the reward model was tested on rankings of {counted(rankings, 'prompt')}")
    if not found:
        return ""
    return (
        f"Small test set: {' and '.join(found)}. With fewer than {FEW_PROMPTS} prompts or {FEW_USERS} users another "
        "split may give another verdict."
    )


def against_best_of_n(found: Mapping[str, Any]) -> str:
    """PPO against best-of-n at the n of nearest KL, in a sentence or two; empty if that was not measured."""
    if not found:
        return ""
    against, ours = found["ppo_against"], found["ppo"]["kl"]
    if found["samples"] == 1:
        return "With one answer per prompt there is nothing to choose from: raise evaluate.best_of_n to compare PPO."
    if against["n"] == 1:
        return (
            f"There is nothing to compare PPO with: its KL ({number(ours['mean'])} nats) is below that of best-of-2 "
            f"({number(found['rows'][1]['kl'])} nats) and nearer to that of SFT, which is 0."
        )
    rate = against["win_rate"]
    sentence = {
        "better": "PPO is better than best-of-n",
        "worse": "PPO is worse than best-of-n",
        "even": "No difference from best-of-n shown",
    }[side(rate, 0.5)]
    text = (
        f"{sentence} at the nearest KL: PPO ({number(ours['mean'])} nats) won {percent(rate['mean'])} of comparisons "
        f"with best of {against['n']} ({number(against['kl'])} nats), 95% interval {between(rate, percent)}."
    )
    if against["n"] == found["samples"] and ours["low"] > against["kl"]:
        text += (
            f" PPO has a higher KL than any choice among {found['samples']} answers; raise evaluate.best_of_n for a "
            "nearer comparison."
        )
    return text


def because(kind: str, evaluation: Mapping[str, Any]) -> str:
    """The parts of the rubric that the win or loss comes from; empty if there is neither or it was not measured."""
    without = evaluation.get("win_rate_without")
    if not without or kind not in ("better", "worse"):
        return ""
    outcome = {"better": "win", "worse": "loss"}[kind]
    carrying = carrying_parts(kind, without)
    if not carrying:
        return f"; no single part of the rubric carries the {outcome}: it remains without each of them"
    if len(carrying) == 1:
        return f"; the {outcome} comes from {PARTS[carrying[0]]}: without it {_left(without[carrying[0]])}"
    each = ", ".join(f"without {PARTS[part]} {_left(without[part])}" for part in carrying)
    return f"; the {outcome} depends on {len(carrying)} parts of the rubric: {each}"


def carrying_parts(kind: str, without: Mapping[str, Interval]) -> list[str]:
    """The parts without which the interval contains 50% or lies on the other side."""
    return [part for part, found in without.items() if side(found, 0.5) != kind]


def _left(found: Interval) -> str:
    said = {"better": "PPO is better", "worse": "PPO is worse", "even": "no difference is shown"}[side(found, 0.5)]
    return f"{said} ({percent(found['mean'])}, {between(found, percent)})"


def side(found: Interval, level: float) -> str:
    """better if the whole interval is above the level, worse if it is below, even if it contains the level or is that
    of fewer than FEWEST_PROMPTS prompts or users.
    """
    if min(found["n"], found.get("users", found["n"])) < FEWEST_PROMPTS:
        return "even"
    return "better" if found["low"] > level else "worse" if found["high"] < level else "even"


def checks(
    evaluation: Mapping[str, Any],
    accuracy: Mapping[str, Any],
    generations: Sequence[Mapping[str, Any]],
) -> list[dict[str, str]]:
    """Checks of whether to trust the verdict: a claim, whether the numbers support it, and the numbers."""
    found: list[dict[str, str]] = []

    def add(claim: str, kind: str, numbers: str) -> None:
        mark = {"better": "holds", "worse": "fails"}.get(kind, "open")
        found.append({"claim": claim, "mark": mark, "numbers": numbers})

    if moved := evaluation.get("kl"):
        add(
            "PPO differs from SFT",
            side(moved, 0.0),
            f"KL to SFT {number(moved['mean'])} nats ({between(moved, number)})",
        )
    if controlled := evaluation.get("win_rate_length_controlled"):
        text = f"{_rate(controlled)}, what a logistic regression on the difference in length predicts for equal length"
        add("PPO wins with length controlled for", side(controlled, 0.5), text)
    if matched := evaluation.get("win_rate_length_matched"):
        lengths = [dig(evaluation, "models", name, "tokens", "mean") for name in ("sft", "ppo")]
        text = f"{_rate(matched)}; mean length {change(*lengths)} against SFT"
        add("PPO wins among answers of similar length", side(matched, 0.5), text)
    if both := evaluation.get("win_rate_both_end"):
        text = f"{_rate(both)} over {number(both['n'])} prompts with such pairs"
        add("PPO wins among pairs where both answers end by themselves", side(both, 0.5), text)
    for part, rate in (evaluation.get("win_rate_without") or {}).items():
        add(f"PPO wins without {PARTS[part]}", side(rate, 0.5), _rate(rate))
    claims = {
        "chrf": ("A judge that no reward model saw agrees", "chrF"),
        "complete": ("PPO ends its answers more often than SFT", "Complete (ends by itself)"),
    }
    for key, (claim, title) in claims.items():
        if difference := paired(generations, key):
            numbers = f"{signed(difference['mean'])} ({between(difference, signed)})"
            add(claim, side(difference, 0.0), f"{title}, PPO minus SFT on the same prompts: {numbers}")
    test = accuracy.get("test", {})
    if name := best_baseline(test):
        kind, text = against_best(test, name)
        add("The reward model beats the best simple baseline", kind, f"{text} {CHOSEN_AFTERWARDS}")
    return found


def best_baseline(judged: Mapping[str, Any]) -> str | None:
    """The most accurate baseline without chance, which earlier versions did not record; None if there is none."""
    means = {
        name: found["accuracy"]["mean"]
        for name, found in (judged.get("baselines") or {}).items()
        if name != "random" and dig(found, "accuracy", "mean") is not None
    }
    return judged.get("best_baseline") or max(means, key=means.__getitem__, default=None)


def against_best(judged: Mapping[str, Any], name: str) -> tuple[str, str]:
    """(better, worse or even, a sentence with the numbers) for the reward model against a baseline on the same
    pairs."""
    baseline, title = judged["baselines"][name], BASELINES.get(name, (name.replace("_", " "), ""))[0]
    text = f"{percent(judged['accuracy']['mean'])} against {percent(baseline['accuracy']['mean'])} ({lower(title)})"
    if (difference := baseline.get("difference")) is None:
        return "even", f"{text}; their paired difference is not recorded."
    text += ", a paired difference of {} ({}).".format(*points(difference))
    few = min(judged.get(unit, FEWEST_PROMPTS) for unit in ("prompts", "users")) < FEWEST_PROMPTS
    return "even" if few else side(difference, 0.0), text


def paired(rows: Sequence[Mapping[str, Any]], part: str) -> dict[str, float] | None:
    """The per-prompt difference PPO minus SFT of a part, with the interval of the mean; None without answers."""

    def mean(answers: Sequence[Mapping[str, Any]]) -> float:
        return sum(answer["parts"][part] for answer in answers) / len(answers)

    users = [row["user_id"] for row in rows if "user_id" in row]
    bootstrap = Bootstrap(users=users if len(users) == len(rows) else None)  # earlier versions did not record them
    return bootstrap.interval([mean(row["ppo"]) - mean(row["sft"]) for row in rows]) if rows else None


def dig(tree: Any, *path: str) -> Any:
    """The value at a path in nested mappings, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def points(found: Interval) -> tuple[str, str]:
    """The difference of two shares in percentage points, and its interval."""
    mean, low, high = (signed(100 * found[key], 1) for key in ("mean", "low", "high"))
    return f"{mean} points", f"{low} to {high}"


def change(before: Any, after: Any) -> str:
    """The change in percent of the first."""
    known = number(before) != "–" and number(after) != "–" and before
    return f"{signed(100 * (after / before - 1), 1)}%" if known else "–"


def lower(title: str) -> str:
    """A title for use inside a sentence."""
    return title[:1].lower() + title[1:]


def _rate(found: Interval) -> str:
    return f"{percent(found['mean'])} ({between(found, percent)})"
