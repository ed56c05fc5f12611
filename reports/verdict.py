"""The verdict on PPO that a run's results support, and checks of its reliability.

Uses the contents of evaluation.json and accuracy.json. A part of the rubric carries the win if, without that part, the
interval of the win rate contains 50% or lies on the other side.
"""

from collections.abc import Mapping
from typing import Any

from data.intervals import FEW_PROMPTS, FEW_USERS, FEWEST_PROMPTS
from reports import formats
from reports.formats import Format, Interval, between, change, counted, dig, number, percent, signed, with_interval

Tree = Mapping[str, Any]
PARTS = {
    "closeness": "closeness to the reference",
    "complete": "the bonus for ending",
    "repetition": "the penalty for repetition",
    "copying": "the penalty for copying the prompt",
    "profanity": "the penalty for profanity",
}
"""Names of the rubric's parts in sentences."""
JUDGES = {
    "rubric": "the rubric",
    "chrf": "chrF",
    "reference_likelihood": "the likelihood of the reference",
    "gold": "a gold reward model",
    "human": "people",
    "llm": "a language model",
}
"""Names of the judges in sentences."""
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
"""Titles and notes of the baselines that a reward model should beat."""


def verdict(evaluation: Tree) -> dict[str, str]:
    """One sentence, and its kind: better, worse, even or unknown."""
    found = dig(evaluation, "win_rate.sft")
    if found is None:
        text = "PPO and SFT were not compared: the evaluate stage recorded no win rate."
        judge = (evaluation.get("judges") or [{"name": None}])[0]["name"]
        if pairs := dig(evaluation, f"comparisons.ppo.{judge}.no_verdict"):
            reason = dig(evaluation, "llm_judge.reason") if judge == "llm" else None
            text = (
                f"PPO and SFT were not compared: none of the {counted(pairs, 'pair')} has a verdict by {JUDGES[judge]}"
                f"{f', because {reason}' if reason else ''}."
            )
        return {"kind": "unknown", "text": text}
    moved = evaluation.get("kl")
    kind = side(found, 0.5) if not moved or side(moved, 0.0) == "better" else "even"
    sentence = {
        "better": "PPO is better than SFT",
        "worse": "PPO is worse than SFT",
        "even": "No difference shown between PPO and SFT",
    }[kind]
    numbers = f"{percent(found['mean'])} of comparisons (95% interval {between(found)}, "
    numbers += f"{counted(found['n'], 'held-out prompt')})"
    if moved and kind != side(found, 0.5):
        numbers += f", but PPO is not shown to differ from SFT (KL {between(moved, number)} nats)"
    judge = dig(evaluation, "judges")[0]["name"]
    if left_out := dig(evaluation, f"comparisons.ppo.{judge}.no_verdict"):
        numbers += f"; {counted(left_out, 'pair')} without a verdict {'is' if left_out == 1 else 'are'} not counted"
    reason = because(kind, evaluation["win_rate_without"]) if judge == "rubric" else ""
    text = f"{sentence} by {JUDGES[judge]}: PPO won {numbers}{reason}."
    return {"kind": kind, "text": text}


def because(kind: str, without: Mapping[str, Interval]) -> str:
    """The parts of the rubric that the win or loss comes from; empty if there is neither, or one part only."""
    if kind == "even" or not without:
        return ""
    outcome = {"better": "win", "worse": "loss"}[kind]
    left = {"better": "PPO is better", "worse": "PPO is worse", "even": "no difference is shown"}
    rest = {
        part: f"{left[side(found, 0.5)]} ({percent(found['mean'])}, {between(found)})"
        for part, found in without.items()
        if side(found, 0.5) != kind
    }
    if not rest:
        return f"; no single part of the rubric carries the {outcome}: it remains without each of them"
    if len(rest) == 1:
        [(part, remains)] = rest.items()
        return f"; the {outcome} comes from {PARTS[part]}: without it {remains}"
    each = ", ".join(f"without {PARTS[part]} {remains}" for part, remains in rest.items())
    return f"; the {outcome} depends on {len(rest)} parts of the rubric: {each}"


def undecidable(found: Interval) -> bool:
    """Whether fewer than FEWEST_PROMPTS prompts, users or other clusters were resampled."""
    return min(found[name] for name in ("n", "users", "clusters") if name in found) < FEWEST_PROMPTS


def side(found: Interval, level: float) -> str:
    """better if the whole interval is above the level, worse if it is below, even if it contains the level or too few
    items were resampled.
    """
    if undecidable(found):
        return "even"
    return "better" if found["low"] > level else "worse" if found["high"] < level else "even"


def labeler_note(config: Tree, evaluation: Tree) -> str:
    """Who ranked the answers, for the reward model and for the evaluation."""
    rubric = (
        "a rubric (closeness to a reference answer and completeness, minus repetition, copying of the prompt and "
        "profanity)"
    )
    judge = evaluation["judges"][0]["name"] if evaluation else "rubric"
    win = f"The win rates are by {JUDGES[judge]}."
    if "win_rate" in evaluation and dig(evaluation, "win_rate.sft") is None:
        win = ""
    labeler = dig(config, "labels.labeler")
    if dig(config, "reward.epochs") == 0:
        return f"The reward model was not trained on rankings in this run. {win}"
    if labeler == "none":
        judged = f"{rubric}, not by a person" if judge == "rubric" else JUDGES[judge]
        return f"The reward model was trained on the rankings in data.rankings. The win rates are judged by {judged}."
    brought = " and ".join(name for name in ("data.rankings", "labels.earlier") if dig(config, name))
    taught = f" The reward model was also trained on rankings from {brought}." if brought else ""
    if labeler == "human":
        return f"People ranked the answers on which the reward model was trained.{taught} {win}"
    if labeler == "llm":
        name = dig(config, "labels.llm.model")
        return f"A language model ({name}), not a person, ranked the answers of this run for training.{taught} {win}"
    win = "A win here is a win by that rubric only." if judge == "rubric" else win
    if brought:  # perhaps by people
        return f"A simulated labeler, {rubric}, ranked the answers of this run for training.{taught} {win}"
    return f"No person ranked any answer for training in this run: the labeler is simulated, {rubric}. {win}"


def too_few(evaluation: Tree, accuracy: Tree) -> str:
    """A sentence where the verdict or the checks rest on few prompts or users; empty otherwise."""
    found = []
    judged: Tree = dig(evaluation, "win_rate.sft") or {}  # by a judge that may have seen only some of the prompts
    prompts: int = judged.get("n", evaluation.get("prompts", 0))
    users: int = judged.get("users", evaluation.get("users", 0))
    if evaluation and (prompts < FEW_PROMPTS or users < FEW_USERS):
        found.append(f"the comparison has {counted(prompts, 'prompt')} of {counted(users, 'user')}")
    rankings = dig(accuracy, "test.prompts")
    if rankings is not None and rankings < FEW_PROMPTS:
        found.append(f"the reward model was tested on rankings of {counted(rankings, 'prompt')}")
    if not found:
        return ""
    return (
        f"Small test set: {' and '.join(found)}. With fewer than {FEW_PROMPTS} prompts or {FEW_USERS} users another "
        "split may give another verdict."
    )


def against_best_of_n(found: Mapping[str, Any]) -> str:
    """PPO against best-of-n at the n of nearest KL, in a sentence or two."""
    against, ours = found["ppo_against"], found["ppo"]["kl"]
    if found["samples"] == 1:
        return "With one answer per prompt there is nothing to choose from: raise evaluate.best_of_n to compare PPO."
    if against["n"] == 1:
        return (
            f"No comparison with best-of-n: PPO's KL ({number(ours['mean'])} nats) is nearer to SFT's, which is 0, "
            f"than to that of best of 2 ({number(found['rows'][1]['kl'])} nats)."
        )
    rate = against["win_rate"]
    sentence = {
        "better": "PPO is better than best-of-n",
        "worse": "PPO is worse than best-of-n",
        "even": "No difference from best-of-n shown",
    }[side(rate, 0.5)]
    text = (
        f"{sentence} at the nearest KL: PPO ({number(ours['mean'])} nats) won {percent(rate['mean'])} of comparisons "
        f"with best of {against['n']} ({number(against['kl'])} nats) by the rubric, 95% interval {between(rate)}."
    )
    if against["n"] == found["samples"] and ours["low"] > against["kl"]:
        text += f" PPO's KL is above that of best of {against['n']}: raise evaluate.best_of_n to compare at equal KL."
    return text


def checks(evaluation: Tree, accuracy: Tree) -> list[dict[str, str]]:
    """Checks of the verdict: a claim, whether the numbers support it (`mark`), and the numbers."""
    found: list[dict[str, str]] = []
    marks = {"better": "holds", "worse": "fails", "even": "open"}

    def add(claim: str, rate: Interval | None, text: str = "{}", level: float = 0.5, form: Format = percent) -> None:
        if rate:
            numbers = text.format(with_interval(rate, form), number(rate["n"]))
            found.append({"claim": claim, "mark": marks[side(rate, level)], "numbers": numbers})

    if moved := evaluation.get("kl"):
        numbers = f"KL to SFT {number(moved['mean'])} nats ({between(moved, number)})"
        add("PPO differs from SFT", moved, numbers, level=0.0)
    predicted = "{}, predicted for equal length by a logistic regression on the difference in length"
    add("PPO wins with length controlled for", evaluation.get("win_rate_length_controlled"), predicted)
    longer = change(*(dig(evaluation, f"models.{name}.tokens.mean") for name in ("sft", "ppo")))
    matched = evaluation.get("win_rate_length_matched")
    add("PPO wins among answers of similar length", matched, f"{{}}; mean length {longer} against SFT")
    ended = evaluation.get("win_rate_both_end")
    add("PPO wins among pairs where both answers end by themselves", ended, "{} over {} prompts with such pairs")
    for part, rate in evaluation.get("win_rate_without", {}).items():
        add(f"PPO wins by the rubric without {PARTS[part]}", rate)
    for part, claim, title in (
        ("chrf", "PPO has a higher chrF, which is not used in training", "chrF"),
        ("complete", "PPO ends its answers more often than SFT", "Complete (ends by itself)"),
    ):
        text = f"{title}, PPO minus SFT on the same prompts: {{}}"
        add(claim, evaluation.get(f"{part}_difference"), text, level=0.0, form=signed)
    for judge in evaluation.get("judges", []):
        if not judge["taught"] and judge["name"] != "chrf":
            claim = f"PPO wins by {JUDGES[judge['name']]}, not used in training"
            add(claim, dig(evaluation, f"comparisons.ppo.{judge['name']}.win_rate"), "win rate of PPO against SFT {}")
    if test := accuracy.get("test"):
        kind, numbers = against_best(test)
        claim = "The reward model beats the best simple baseline"
        found.append({"claim": claim, "mark": marks[kind], "numbers": numbers})
    return found


def baseline(name: str) -> tuple[str, str]:
    """The title and the note of a baseline."""
    return BASELINES.get(name, (formats.spaced(name), ""))


def against_best(judged: Tree) -> tuple[str, str]:
    """(better, worse or even, sentences with the numbers) for the reward model against the best baseline on the same
    pairs.
    """
    best = judged["baselines"][judged["best_baseline"]]
    title = baseline(judged["best_baseline"])[0]
    few = min(judged["prompts"], judged["users"]) < FEWEST_PROMPTS
    difference, interval = formats.points(best["difference"])
    return "even" if few else side(best["difference"], 0.0), (
        f"{percent(judged['accuracy']['mean'])} against {percent(best['accuracy']['mean'])} "
        f"({title[:1].lower()}{title[1:]}), a paired difference of {difference} ({interval}). The best baseline is "
        "chosen on these same pairs, which favours it and makes the check strict."
    )
