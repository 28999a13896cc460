"""The head of a study's page."""

from __future__ import annotations

from analysis import FitConfig, fit
from analysis.report.overview import facts
from tests.analysis.synthetic import study

QUICK = FitConfig(bootstrap=100, validation=False)


def test_steps_that_runs_share_are_paid_once():
    runs, depths = study(budgets=(1e18, 2e18, 4e18), recurrences=(2, 4, 6, 8))
    runs = runs.assign(executed_flops=8e12, device_s=120.0, device="cpu")
    # Half of each run's steps were those of a trunk, of which it bears a quarter.
    shared = runs.assign(trunk_flops=4e12, trunk_share_flops=1e12)
    head = dict(facts(shared, fit(shared, depths, QUICK), "0"))
    assert len(runs) == 15 and head["cost"] == "7.5e13 FLOPs in 18.8 device-minutes on cpu"
    alone = runs.assign(trunk_flops=0.0, trunk_share_flops=0.0)
    assert "1.2e14 FLOPs in 30 device" in dict(facts(alone, fit(alone, depths, QUICK), "0"))["cost"]


def test_runs_beside_the_curves_are_counted():
    runs, depths = study(budgets=(1e18, 2e18, 4e18), recurrences=(2, 3, 4, 6, 8))
    head = dict(facts(runs, fit(runs, depths, QUICK), "0"))
    assert "; 3 at µ = 3 lie beside the isoFLOP curves" in head["runs"]
    runs, depths = study(budgets=(1e18, 2e18, 4e18), recurrences=(2, 4, 6, 8))
    assert "beside" not in dict(facts(runs, fit(runs, depths, QUICK), "0"))["runs"]
