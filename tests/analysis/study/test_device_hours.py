"""Laws at equal device-hours, against a search along the true curve of equal hours."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from analysis import FitConfig, TableError
from analysis.figures.device_hours import device_hours_figures
from analysis.study.device_hours import fit_device_hours
from analysis.study.run_seconds import run_seconds, timed_runs
from tests.analysis.figures import extents
from tests.analysis.synthetic import INSIDE, Truth, study

QUICK = FitConfig(bootstrap=100, validation=False)
OVERHEAD, FIXED, PER_LOOP = 60.0, 2e-6, 0.9e-6  # s, s per token, s per token and loop


def timed(fixed=FIXED, per_loop=PER_LOOP, scatter=0.0, **kwargs):
    runs = study(Truth(), **kwargs)[0]
    seconds = OVERHEAD + runs["tokens"] * (fixed + per_loop * runs["mean_recurrence"])
    noise = np.exp(scatter * np.random.default_rng(0).standard_normal(len(runs)))
    return runs.assign(device_s=seconds * noise, kernels="reference")


def best_recurrence(hours):
    """The recurrence of least true loss along D = H / h(mu)."""

    def loss(log_mu):
        mu = np.exp(log_mu)
        return float(Truth().loss(mu, 3600 * hours / (FIXED + PER_LOOP * mu)))

    return float(np.exp(minimize_scalar(loss, bounds=(0, 5), method="bounded", options={"xatol": 1e-10}).x))


def test_seconds_of_runs_give_back_their_function():
    found = run_seconds(timed_runs(timed()))
    assert found.overhead_s == pytest.approx(OVERHEAD, rel=1e-6)
    assert found.fixed_s_per_token == pytest.approx(FIXED, rel=1e-6)
    assert found.per_loop_s_per_token == pytest.approx(PER_LOOP, rel=1e-6)
    assert found.scatter == pytest.approx(0, abs=1e-9) and found.runs == 35
    assert run_seconds(timed_runs(timed(scatter=0.05))).scatter == pytest.approx(0.05, rel=0.3)


def test_the_optimum_is_that_at_equal_hours():
    (group,) = fit_device_hours(timed(), QUICK).groups
    law = group.laws["mean_recurrence"]
    for one in law.optima:
        expected = best_recurrence(one.hours)
        if one.value is None:
            assert not 2 < expected < 12
        else:
            assert one.value == pytest.approx(expected, rel=2e-3)
    inside = [one for one in law.optima if one.value is not None]
    hours, values = ([getattr(one, name) for one in inside] for name in ("hours", "value"))
    assert law.exponent == pytest.approx(np.polyfit(np.log(hours), np.log(values), 1)[0], rel=1e-6)
    assert "at equal device-hours" in group.summary() and " h)^" in group.summary()


def test_hours_in_proportion_to_flops_give_the_isoflop_law():
    truth, rate = Truth(), 1e14
    slope = truth.flops_per_loop + truth.flops_per_backprop_loop / 2
    (group,) = fit_device_hours(timed(truth.flops_fixed / rate, slope / rate), QUICK).groups
    for one, budget in zip(group.laws["mean_recurrence"].optima, INSIDE, strict=True):
        assert one.hours == pytest.approx(budget / rate / 3600, rel=1e-3)
        assert one.value == pytest.approx(truth.optimum(budget), rel=5e-3)


def test_steps_taken_over_from_a_trunk_cost_a_run_nothing():
    runs = timed(fixed=0.0)
    runs["trunk_steps"] = runs["steps"] // 2
    own = runs["tokens"] * (1 - runs["trunk_steps"] / runs["steps"])
    runs["device_s"] = OVERHEAD + own * PER_LOOP * runs["mean_recurrence"]
    assert run_seconds(timed_runs(runs)).per_loop_s_per_token == pytest.approx(PER_LOOP, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device_s": np.nan, "wall_s": np.nan}, "the seconds of 35 of 35 runs are missing"),
        ({"device": ["A100", "H100"]}, "seconds were measured on 2 kinds of device: A100 .*, H100"),
        ({"kernels": ["cpu", "reference"]}, "seconds were measured on 2 kinds of device"),
        ({"mean_recurrence": 4.0}, "35 runs at 1 recurrence do not give seconds per loop"),
    ],
)
def test_seconds_that_give_no_function_are_refused(change, reason):
    runs = timed()
    for name, value in change.items():
        runs[name] = np.resize(value, len(runs)) if isinstance(value, list) else value
    with pytest.raises(TableError, match=reason):
        run_seconds(timed_runs(runs))


def test_without_device_seconds_wall_seconds_times_devices_are_taken():
    runs = timed()
    runs["wall_s"], runs["devices"], runs["device_s"] = runs["device_s"] / 4, 4, np.nan
    assert run_seconds(timed_runs(runs)).per_loop_s_per_token == pytest.approx(PER_LOOP, rel=1e-6)


def test_a_shared_machine_is_no_clock():
    (group,) = fit_device_hours(timed(scatter=0.5, budgets=INSIDE[:3]), QUICK).groups
    assert "the machine was shared" in group.refusal and group.laws == {}


@pytest.mark.parametrize("budgets", [INSIDE, INSIDE[:2]])
def test_the_figure_of_hours_has_no_overlap(budgets):
    (drawn,) = device_hours_figures(fit_device_hours(timed(budgets=budgets, recurrences=(2, 4, 6, 8)), QUICK))
    assert extents.problems_of([drawn]) == []
    assert set(drawn.tables) == {"seconds", "optima"}
