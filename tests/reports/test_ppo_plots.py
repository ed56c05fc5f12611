"""The curves of a PPO run show what was logged, where it was logged, and do without the rest."""

import math
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color

from reports.curves import MANY
from reports.page import png
from reports.plots import HEALTHY
from reports.run_plots import PANELS, ppo_curves

Row = dict[str, Any]


def rows(count: int, **changes: Any) -> list[Row]:
    keys = [line.key for panel in PANELS for line in panel.lines if not line.key.startswith("held_out_")]
    seconds = {"seconds_rollout": 2.0, "seconds_score": 1.0, "seconds_update": 3.0}
    return [{"step": k, **dict.fromkeys(keys, 0.3 + 0.01 * k), **seconds, **changes} for k in range(1, count + 1)]


def evaluations(*steps: int) -> list[Row]:
    keys = [line.key for panel in PANELS for line in panel.lines if line.key.startswith("held_out_")]
    errors = {f"held_out_{name}_se": 0.05 for name in ("score", "kl", "judge")}
    return [{"step": step, **dict.fromkeys(keys, 0.2), **errors} for step in steps]


def panels(*given: Any, **named: Any) -> dict[str, Axes]:
    figure = ppo_curves(*given, **named)
    assert figure is not None
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def curves(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def green(axes: Axes) -> list[tuple[float, float]]:
    """From where to where a panel calls it healthy."""
    return [
        (patch.get_y(), patch.get_y() + patch.get_height())
        for patch in axes.patches
        if same_color(patch.get_facecolor(), HEALTHY)
    ]


def test_everything_that_is_logged_is_drawn_at_its_iteration_with_its_unit():
    found = panels(rows(4), evaluations(0, 2, 4))
    assert len(found) == len(PANELS) + 1
    for panel in PANELS:
        assert found[panel.title].get_ylabel() == panel.unit
        assert found[panel.title].get_xlabel() == "iteration"
    score = curves(found["Score"])
    assert score["roll-outs"] == ([1, 2, 3, 4], pytest.approx([0.31, 0.32, 0.33, 0.34]))
    assert score["held-out prompts"] == ([0, 2, 4], [0.2, 0.2, 0.2])
    band = found["Held-out judge"].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.2 - 2 * 0.05, 0.2 + 2 * 0.05))


def test_what_was_not_logged_leaves_its_panel_out():
    bare = [
        {key: value for key, value in row.items() if not key.startswith(("ptx", "seconds", "repetition"))}
        for row in rows(3)
    ]
    found = panels(bare)
    missing = {
        "Pretraining loss",
        "Pretraining gradient relative to PPO's",
        "Time per iteration",
        "Repetition",
        "Held-out judge",
    }
    assert {panel.title for panel in PANELS} - set(found) == missing - {"Time per iteration"}
    assert "Time per iteration" not in found
    assert ppo_curves([]) is None
    assert ppo_curves([{"step": 1, "score": math.nan, "kl": None}]) is None


def test_a_fixed_price_of_kl_is_no_curve_and_a_target_is_a_line():
    assert "KL coefficient (beta)" not in panels(rows(3, kl_coef=0.02))
    found = panels(rows(3), kl_target=6.0)
    assert "KL coefficient (beta)" in found
    assert list(curves(found["KL to SFT"])["target"][1]) == [6.0, 6.0]
    assert found["KL to SFT"].get_ylim()[1] > 6.0


@pytest.mark.parametrize("value", [0.02, 0.6])
def test_the_healthy_range_is_where_it_is_said_to_be_wherever_the_run_is(value: float):
    axes = panels(rows(3, clip_fraction=value))["Clip fraction"]
    ((low, high),) = green(axes)
    bottom, top = axes.get_ylim()
    assert bottom <= value <= top
    assert low == pytest.approx(bottom)
    # All of the panel is healthy, or the range ends within it.
    assert high == pytest.approx(top if value < 0.2 else 0.2)


def test_one_row_many_rows_zeros_and_values_far_below_are_drawn_too():
    assert len(panels(rows(1))) > 10
    assert len(panels(rows(MANY + 1), evaluations(0, 30, 60))) > 10
    assert "Gradient norm" not in panels(rows(3, policy_grad_norm=0.0, value_grad_norm=0.0))
    assert panels(rows(3, explained_variance=-500.0))["Explained variance"].get_ylim()[0] > -1.5


def test_the_held_out_policy_alone_is_enough_and_a_picture_comes_of_it():
    assert "Score" in panels([], evaluations(0, 5))
    figure = ppo_curves([], evaluations(0, 5))
    assert figure is not None
    assert png(figure).startswith(b"\x89PNG")


def test_a_single_iteration_has_a_single_tick() -> None:
    axes = list(panels(rows(1)).values())[-1]
    axes.figure.canvas.draw()
    low, high = axes.get_xlim()
    shown = [place for place in axes.get_xticks() if low <= place <= high]
    assert all(place == int(place) for place in shown), shown
