"""Plots of the sweeps, from their sweep.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import page
from reports.plots import BLUE, DASHED, GREEN, PURPLE, RED, errors, grid
from reports.run_plots import MODELS

Points = Sequence[Mapping[str, Any]]
KINDS = {"best_of_n": ("best of n from SFT", BLUE, "o"), "rl": ("PPO", RED, "D")}


def write_picture(folder: Path) -> None:
    """Draws the sweep.json in the folder as sweep.png."""
    found = json.loads((folder / "sweep.json").read_text())
    figure = scores_by_kl(found) if "fits" in found else loss_by_reward(found)
    (folder / "sweep.png").write_bytes(page.png(figure))


def scores_by_kl(found: Mapping[str, Any]) -> Figure:
    """A panel for each judge: its score minus SFT's against sqrt(KL), with intervals and Gao et al.'s fits."""
    gold = "the labeler's rubric" if found["gold"] == "rubric" else "a held-out reward model"
    titles = {"proxy": "Proxy: the run's reward model", "gold": f"Gold: {gold}", "chrf": "chrF against the reference"}
    figure, panels = grid(len(titles), len(titles), height=4.2)
    for axes, (judge, title) in zip(panels, titles.items(), strict=True):
        for kind, (label, colour, marker) in KINDS.items():
            points, fit = found[kind], found["fits"][kind][judge]
            places = [point["d"] for point in points]
            _errors(axes, places, [point[judge] for point in points], color=colour, marker=marker, label=label)
            d = np.linspace(1e-3, max(1e-3, *places), 200)
            by = d if kind == "best_of_n" else np.log(d)
            axes.plot(d, d * (fit["alpha"]["mean"] - fit["beta"]["mean"] * by), color=colour, linewidth=1.4)
        axes.axhline(0, **DASHED)
        axes.set_title(title)
        axes.set_xlabel("√KL to SFT, √nats")
    panels[0].set_ylabel("score minus SFT's; lines: fits")
    panels[0].legend()
    return figure


def loss_by_reward(found: Mapping[str, Any]) -> Figure:
    """A panel for each judge: its score against the loss on pretraining text, both minus SFT's, for gammas at the run's
    beta and for betas at gamma 0. Top left is best.
    """
    titles = {"proxy": "The run's reward model", "gold": "Gold score"}
    figure, panels = grid(len(titles), len(titles), height=4.2)
    beta = found["kl_coef"]
    gammas = [point for point in found["points"] if point["beta"] == beta]
    betas = [point for point in found["points"] if point["gamma"] == 0 and point["beta"] != beta]
    for axes, (judge, title) in zip(panels, titles.items(), strict=True):
        for name, points, label, colour, marker in (
            ("gamma", gammas, f"γ (ptx_coef) at β={beta:g}", PURPLE, "o"),
            ("beta", betas, "β (kl_coef) at γ=0", GREEN, "s"),
        ):
            losses, scores = ([point[f"{key}_change"] for point in points] for key in ("pretraining_loss", judge))
            places = [loss["mean"] for loss in losses]
            _errors(axes, places, scores, losses, color=colour, marker=marker, label=label)
            for point, place, score in zip(points, places, scores, strict=True):
                text = f"{'γ' if name == 'gamma' else 'β'}={point[name]:g}"
                axes.annotate(text, (place, score["mean"]), xytext=(6, 5), textcoords="offset points", fontsize=9)
        axes.plot([0], [0], marker="*", markersize=11, color=MODELS["base"][1], linestyle="none", label="SFT")
        axes.set_title(f"{title}, minus SFT's")
        axes.set_xlabel("loss on held-out pretraining text minus SFT's, nats per token")
        axes.margins(x=0.12)
    panels[0].legend()
    return figure


def _errors(axes: Axes, places: Sequence[float], found: Points, across: Points | None = None, **how: Any) -> None:
    """Points with 95% intervals of the vertical and, with `across`, of the horizontal values."""
    bars = errors(across) if across else None
    how |= {"linestyle": "none", "markersize": 5, "elinewidth": 1, "capsize": 2, "alpha": 0.85}
    axes.errorbar(places, [each["mean"] for each in found], errors(found), bars, **how)
