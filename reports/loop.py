"""The report of the loop: win rates of each round's policy on the same held-out prompts, its data and its lineage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reports.formats import dig, number, percent, points
from reports.page import Page, Table, side_by_side
from reports.plots import BLUE, DASHED, GREEN, PURPLE, RED, YELLOW, errors, grid
from reports.run import Results, digests
from reports.run_tables import JUDGES

PAGE = Page("loop.j2", "index.html", "report.md", "pictures")
COLOURS = (BLUE, RED, GREEN, PURPLE, YELLOW)


def write_loop(rounds: Sequence[Path], out: Path) -> None:
    """Writes loop.json, index.html and report.md; `rounds` are the run folders in order."""
    results = {run.name: Results(run) for run in rounds}
    found = [facts(run, one, rounds) for run, one in zip(rounds, results.values(), strict=True)]
    last = gains(found[-1], results[rounds[-1].name].evaluation)
    (out / "loop.json").write_text(json.dumps({"rounds": found, "gain": last}, indent=2) + "\n")
    PAGE.write(
        out, f"Loop of {len(rounds)} rounds" if len(rounds) > 1 else "Loop of one round", {"gain": picture(last)},
        rounds=rounds_table(found), gain=gain_table(last), against=against_table(found),
        lineage={
            name: {"parent": dig(one, "parent") or "SFT"}
            | {stage: digest[:10] for stage, digest in digests(results[name].manifests).items()}
            for name, one in zip(results, found, strict=True)
        },
        prompts=results[rounds[-1].name].evaluation["prompts"],
    )  # fmt: skip


def facts(run: Path, results: Results, rounds: Sequence[Path]) -> dict[str, Any]:
    """A round's data, and the held-out results of its policy and reward model in its own evaluation."""
    labels, about = dig(results.manifests, "labels.headline") or {}, json.loads((run / "round.json").read_text())
    places = {
        other.name: place
        for other in rounds
        for place in dig(results.config, "evaluate.models") or []
        if Path(place).resolve().is_relative_to(other.resolve())
    }
    return {
        "name": run.name,
        "parent": about["parent"] or about["policy"],
        "places": places,
        "rankings": labels.get("rankings"),
        "new_rankings": labels.get("rankings", 0) - labels.get("earlier_rankings", 0),
        "train_prompts": dig(results.manifests, "reward.headline.train_prompts"),
        "accuracy": dig(results.accuracy, "test.accuracy"),
        "kl": results.evaluation["kl"],
        "against": {name: results.evaluation["win_rate"][place] for name, place in places.items()},
    }


def gains(last: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Round -> judge -> win rate against SFT in the last round's evaluation."""
    comparisons = evaluation["comparisons"]
    models = {name: place for name, place in last["places"].items() if place in comparisons} | {last["name"]: "ppo"}
    return {
        name: {judge["name"]: comparisons[model][judge["name"]]["win_rate"] for judge in evaluation["judges"]}
        for name, model in models.items()
    }


def gain_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Win rates against SFT by judge; a column for each round."""
    judges = dict.fromkeys(judge for rates in found.values() for judge in rates)
    return side_by_side("Judge", found, [(JUDGES[judge], "", judge, percent) for judge in judges])


def against_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The first judge's verdict on each policy against those of earlier rounds."""
    rows = [
        [f"{one['name']} against {other}", *points_over_half(rate)]
        for one in found
        for other, rate in one["against"].items()
    ]
    return Table(["Win rate", "", "above 50%"], rows)


def points_over_half(rate: Mapping[str, float] | None) -> list[Any]:
    """A win rate, and its difference from one half in points."""
    if rate is None:
        return ["–", "–"]
    return [percent(rate["mean"]), points({key: rate[key] - 0.5 for key in ("mean", "low", "high")})]


def rounds_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The data and the models of each round."""
    lines = [
        ("New rankings", "train, validation and test", "new_rankings", number),
        ("All rankings", "", "rankings", number),
        ("Prompts that the reward model was trained on", "without rankings that only tie", "train_prompts", number),
        ("Accuracy of the reward model", "held-out rankings of all rounds so far", "accuracy", percent),
        ("KL of the policy to SFT, nats", "", "kl", number),
    ]
    return side_by_side("", {one["name"]: one for one in found}, lines)


def picture(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Win rates against SFT over the rounds; SFT would be at 50%."""
    figure, (axes,) = grid(1, 1, height=4.2)
    judges = dict.fromkeys(judge for rates in found.values() for judge in rates)
    for place, judge in enumerate(judges):
        rates = [(number, one[judge]) for number, one in enumerate(found.values(), start=1) if one[judge]]
        if rates:
            shift = 0.04 * (place - (len(judges) - 1) / 2)
            axes.errorbar(
                [number + shift for number, _ in rates], [rate["mean"] for _, rate in rates],
                errors([rate for _, rate in rates]), fmt="o-", color=COLOURS[place % len(COLOURS)], label=JUDGES[judge],
            )  # fmt: skip
    axes.axhline(0.5, **DASHED)
    axes.set_xticks(range(1, len(found) + 1), list(found))
    axes.set_xlim(0.5, len(found) + 0.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("win rate against SFT")
    axes.legend()
    return figure
