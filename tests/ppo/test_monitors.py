"""Each monitor fires when it should, warns once, and behaves the same in a resumed run."""

import json
import math
import random
from pathlib import Path

import pytest

from ppo.monitors import Monitors, MonitorSettings, StoppedRunError, rise, warnings_of

HEALTHY = {"score": 0.5, "kl": 3.0, "kl_k3": 3.1, "entropy": 1.6, "ended": 0.9, "policy_grad_norm": 0.7}
Row = dict[str, float]


def evaluation(score: float, judge: float, error: float = 0.01) -> Row:
    return {"held_out_score": score, "held_out_score_se": error, "held_out_judge": judge, "held_out_judge_se": error}


def warned(settings: MonitorSettings, rows: list[Row], past: list[Row] | None = None) -> list[tuple[int, str]]:
    """(iteration, monitor) of every warning."""
    monitors = Monitors(settings, past or [])
    found = []
    for iteration, row in enumerate(rows, start=1 + len(past or [])):
        found += [
            (iteration, told.rsplit("ppo.monitors.", 1)[1].rstrip(")")) for told in monitors.check(iteration, row)
        ]
    return found


def test_no_monitor_fires_in_a_healthy_run():
    monitors = Monitors(MonitorSettings())
    for iteration in range(1, 30):
        wobble = 0.1 * math.sin(iteration)
        assert monitors.check(iteration, {name: value + wobble for name, value in HEALTHY.items()}) == []
        assert monitors.warnings == {"warnings": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["score", "kl_k3", "policy_grad_norm", "held_out_score", "anything"])
def test_any_value_that_is_not_finite_stops_the_run(name: str, value: float):
    monitors = Monitors(MonitorSettings())
    monitors.check(6, HEALTHY)
    with pytest.raises(StoppedRunError, match=rf"^iteration 7: {name} is {value}.*ppo\.monitors\.not_finite=warn"):
        monitors.check(7, HEALTHY | {name: value})


def test_a_stop_is_one_sentence_with_metric_limit_and_setting():
    monitors = Monitors(MonitorSettings(max_kl=20))
    assert monitors.check(1, {"kl": 20.0}) == []
    with pytest.raises(ValueError, match="iteration 2") as stopped:
        monitors.check(2, {"kl": 20.5})
    said = str(stopped.value)
    assert said == (
        "iteration 2: the KL to the SFT policy is 20.5 nats per episode, above ppo.monitors.max_kl=20; this "
        "iteration is not saved; set ppo.monitors.kl=warn to continue from the last checkpoint, or from the start if "
        "there is none"
    )
    assert said.count(". ") == 0


def test_the_metrics_of_the_roll_out_are_enough_to_stop_a_run():
    monitors = Monitors(MonitorSettings())
    monitors.check(1, HEALTHY)
    with pytest.raises(StoppedRunError, match="kl is nan"):
        monitors.check(2, {"score": 0.1, "kl": math.nan})


def test_each_monitor_stops_warns_or_ignores_as_configured():
    falling = [HEALTHY | evaluation(0.2 * k, 0.5 - 0.1 * k) for k in range(5)]
    cases: dict[str, list[Row]] = {
        "not_finite": [{"score": math.nan}],
        "kl": [{"kl": 1e3}],
        "entropy": [{"entropy": 1.5}, {"entropy": 0.1}],
        "cut_off": [{"ended": 0.0}] * 5,
        "over_optimisation": falling,
    }
    for name, rows in cases.items():
        others = {other: "ignore" for other in cases if other != name}
        sentence = rf"^iteration {len(rows)}: .*; .*; set ppo\.monitors\.{name}=warn to continue from the last"
        with pytest.raises(StoppedRunError, match=sentence):
            warned(MonitorSettings(**others | {name: "stop"}), rows)  # type: ignore[arg-type]
        assert warned(MonitorSettings(**others | {name: "warn"}), rows) == [(len(rows), name)]  # type: ignore[arg-type]
        assert warned(MonitorSettings(**others | {name: "ignore"}), rows) == []  # type: ignore[arg-type]


def test_a_warning_is_given_when_a_monitor_starts_to_fire_and_counted_while_it_fires():
    monitors = Monitors(MonitorSettings(kl="warn", max_kl=10))
    told, counts = [], []
    for iteration, kl in enumerate([1, 11, 12, 13, 9, 11, 12], start=1):
        # In two parts, as its numbers come in.
        told += [iteration for _ in monitors.check(iteration, {"kl": float(kl)})]
        told += [iteration for _ in monitors.check(iteration, {"kl": float(kl), "entropy": 1.0})]
        counts.append(monitors.warnings["warnings"])
    assert told == [2, 6]
    assert counts == [0, 1, 1, 1, 0, 1, 1]


def test_the_warnings_of_a_run_follow_from_its_rows():
    settings = MonitorSettings(kl="warn", max_kl=10, cut_off_iterations=2)
    rows = [
        {"kl": kl, "entropy": 1.0, "ended": ended}
        for kl, ended in ((1.0, 0.5), (11.0, 0.0), (12.0, 0.0), (9.0, 0.0), (11.0, 0.5))
    ]
    monitors = Monitors(settings)
    told = [
        sentence
        for step, row in enumerate(rows, start=1)
        for part in ({"kl": row["kl"]}, row)
        for sentence in monitors.check(step, part)
    ]
    numbered = [{"step": float(step)} | row for step, row in enumerate(rows, start=1)]
    # As two files hold them: some numbers of a step in one, some in the other.
    split = [{"step": row["step"], "kl": row["kl"]} for row in numbered] + [
        {name: row[name] for name in ("step", "ended", "entropy")} for row in numbered
    ]
    assert warnings_of(settings, numbered) == warnings_of(settings, split) == told
    assert [sentence.split(":")[1] for sentence in told] == [" iteration 2", " iteration 3", " iteration 5"]
    # A run may have been stopped and resumed with other settings.
    assert warnings_of(MonitorSettings(kl="stop", max_kl=10, cut_off_iterations=2), numbered) == told
    assert warnings_of(MonitorSettings(kl="ignore", cut_off="ignore"), numbered) == []


def test_a_metric_of_the_end_of_each_iteration_warns_once_too():
    monitors = Monitors(MonitorSettings(not_finite="warn"))
    told = []
    for iteration in range(1, 6):
        told += [iteration for _ in monitors.check(iteration, {"kl": 1.0})]
        told += [iteration for _ in monitors.check(iteration, {"kl": 1.0, "policy_loss": math.nan})]
    assert told == [1]


def test_entropy_has_a_limit_and_a_fraction_of_the_first_iterations():
    def rows(*values: float) -> list[Row]:
        return [{"entropy": value} for value in values]

    fraction = MonitorSettings(min_entropy=0.0, min_entropy_fraction=0.25)
    assert warned(fraction, rows(2.0, 0.51, 0.49, 0.3, 0.6, 0.4)) == [(3, "entropy"), (6, "entropy")]
    assert warned(MonitorSettings(min_entropy=0.05, min_entropy_fraction=0.0), rows(2.0, 0.051, 0.049)) == [
        (3, "entropy")
    ]
    assert warned(MonitorSettings(min_entropy=0.0, min_entropy_fraction=0.0), rows(2.0, 0.0)) == []


def test_cut_off_counts_iterations_in_a_row():
    def rows(*ended: float) -> list[Row]:
        return [{"ended": value} for value in ended]

    settings = MonitorSettings(cut_off_iterations=3)
    assert warned(settings, rows(0, 0, 0.01, 0, 0)) == []
    assert warned(settings, rows(0, 0, 0.01, 0, 0, 0, 0)) == [(6, "cut_off")]
    assert warned(settings, rows(0, 0)) == []


@pytest.mark.parametrize(
    ("score", "judge", "fires"),
    [
        (0.1, -0.05, True),
        (0.1, 0.05, False),
        (-0.1, -0.05, False),
        (0.1, -0.001, False),
        (0.001, -0.05, False),
        (0.0, 0.0, False),
    ],
)
def test_over_optimisation_is_a_rising_score_with_a_falling_judge(score: float, judge: float, fires: bool):
    rows = [HEALTHY | evaluation(score * k, 0.4 + judge * k) for k in range(5)]
    assert warned(MonitorSettings(), rows) == ([(5, "over_optimisation")] if fires else [])


def test_over_optimisation_looks_at_the_last_evaluations_only():
    settings = MonitorSettings(over_optimisation_evaluations=4)
    bad = [evaluation(0.1 * k, 0.4 - 0.05 * k) for k in range(4)]
    good = [evaluation(0.3 + 0.1 * k, 0.25 + 0.05 * k) for k in range(4)]
    assert warned(settings, bad[:3]) == []
    # Iterations without an evaluation lie between.
    assert warned(settings, [row for pair in zip(bad, [HEALTHY] * 4, strict=True) for row in pair]) == [
        (7, "over_optimisation")
    ]
    monitors = Monitors(settings)
    for iteration, row in enumerate(bad + good, start=1):
        monitors.check(iteration, row)
    assert monitors.firing == {}
    long_ago = [evaluation(0.0, 0.01 * k) for k in range(9)]
    assert warned(settings, long_ago + bad) == [(13, "over_optimisation")]


def test_without_a_judge_there_is_no_over_optimisation():
    assert warned(MonitorSettings(), [{"held_out_score": 0.1 * k, "held_out_score_se": 0.01} for k in range(9)]) == []


def test_rise_and_its_error_are_those_of_a_least_squares_line():
    places, errors, draw = [0, 10, 20, 40, 50], [0.1, 0.2, 0.1, 0.3, 0.1], random.Random(0)
    assert rise(places, [2 + 0.03 * x for x in places], errors)[0] == pytest.approx(1.5)
    # The oracle: many draws of values with these errors around a flat line.
    rises = [rise(places, [draw.gauss(1.0, error) for error in errors], errors)[0] for _ in range(20_000)]
    spread = math.sqrt(sum(value**2 for value in rises) / len(rises))
    # The spread of 20,000 draws is itself uncertain by 1 / sqrt(2 * 20,000) = 0.5%.
    assert rise(places, [1.0] * 5, errors)[1] == pytest.approx(spread, rel=0.02)


def test_false_alarms_of_over_optimisation_are_as_rare_as_documented():
    draw, settings = random.Random(1), MonitorSettings()
    fired = sum(
        bool(warned(settings, [evaluation(0.1 * k, 0.3 + draw.gauss(0, 0.01)) for k in range(5)])) for _ in range(2000)
    )
    # A normal number is below -2 of its errors 2.3% of the time; 2,000 draws of that vary by 0.33%.
    assert 0.01 < fired / 2000 < 0.036


def test_a_resumed_run_gets_the_warnings_of_an_uninterrupted_one(tmp_path: Path):
    draw = random.Random(2)
    settings = MonitorSettings(kl="warn", max_kl=3.0, cut_off_iterations=2, over_optimisation_evaluations=3)
    rows: list[Row] = []
    for k in range(24):
        row = {"kl": draw.uniform(0, 4), "entropy": draw.choice([2.0, 1.0, 0.1]), "ended": draw.choice([0.0, 0.0, 0.5])}
        rows.append(row | (evaluation(draw.random(), draw.random(), 0.05) if k % 2 else {}))
    whole = Monitors(settings)
    told = [whole.check(step, row) for step, row in enumerate(rows, start=1)]
    assert sum(map(bool, told)) > 5
    for cut in range(len(rows)):
        written = [
            {"step": step, **{k: v for k, v in row.items() if "held" not in k}}
            for step, row in enumerate(rows[:cut], start=1)
        ]
        apart = [
            {"step": step, **{k: v for k, v in row.items() if "held" in k}}
            for step, row in enumerate(rows[:cut], start=1)
        ]
        again = Monitors(settings, [json.loads(json.dumps(row)) for row in [*written, *apart]])
        resumed = [again.check(step, row) for step, row in enumerate(rows[cut:], start=cut + 1)]
        assert resumed == told[cut:]
        assert again.firing == whole.firing
