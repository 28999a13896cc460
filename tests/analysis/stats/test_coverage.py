"""The coverage study in a reduced form; `make validate` runs it in full."""

import numpy as np
import pytest

from validation import coverage, simulated


def test_most_intervals_of_a_few_studies_hold_the_truth(monkeypatch):
    monkeypatch.setattr(coverage, "RESAMPLES", 200)
    for name in ("shared shape", "surface"):
        for row in coverage.summarise(coverage.simulate("gaussian", name, range(12))):
            assert row["accepted"] >= 10
            # With 95 % coverage fewer than nine of twelve happen once in four thousand times.
            assert row["coverage"] * row["accepted"] >= 9
            assert np.isfinite(row["median_width"])


@pytest.mark.parametrize("noise", coverage.ROBUST)
def test_robust_studies_keep_their_intervals_narrow(noise, monkeypatch):
    """One run of 36 is 20 standard deviations off, or noise is unequal: at most 1.6 of the Gaussian width."""
    monkeypatch.setattr(coverage, "RESAMPLES", 100)
    for row in coverage.summarise(coverage.simulate(noise, "shared shape", range(8))):
        assert row["accepted"] >= 6
        assert row["coverage"] * row["accepted"] >= 5
        assert row["median_width"] < 1.6 * {"mean_recurrence": 0.40, "tokens": 0.20}[row["quantity"]]


def test_coverage_is_counted_against_both_truths(monkeypatch):
    """Intervals of the standard normal about estimates scattered by it hold the truth 95 % of the time."""
    truth = coverage.true_slope("tokens", coverage.INSIDE)
    four = coverage.true_slope("tokens", coverage.INSIDE[:4])
    draws = truth + np.random.default_rng(0).standard_normal(20_000)
    records = [
        {
            "study": k,
            "estimator": "surface",
            "quantity": "tokens",
            "exponent": value,
            "low": value - 1.96,
            "high": value + 1.96,
            "budgets": coverage.INSIDE,
            "refusal": None,
        }
        for k, value in enumerate(draws)
    ]
    records.append({**records[0], "exponent": None, "low": None, "high": None, "refusal": "2 budgets"})
    (row,) = coverage.summarise(records)
    assert row["coverage"] == pytest.approx(0.95, abs=0.005)
    assert row["width_over_spread"] == pytest.approx(1.0, abs=0.03)
    assert row["refused"] == {"2 budgets": 1}
    narrow = {"budgets": coverage.INSIDE[:4], "low": four - 1e-6, "high": four + 1e-6}
    (other,) = coverage.summarise([{**record, **narrow} for record in records[:2]])
    assert (other["coverage"], other["coverage_of_the_slope_over_accepted_budgets"]) == (0.0, 1.0)


def test_interrupted_studies_continue_where_they_stopped(tmp_path, monkeypatch):
    def simulate(numbers):
        return [{"study": k} for k in numbers]

    simulated.keep(simulate, range(10), tmp_path / "00000-00010.json")
    monkeypatch.setattr(simulated, "ProcessPoolExecutor", Inline)
    found = simulated.run(simulate, 15, 1, tmp_path)
    assert [record["study"] for record in found] == list(range(15))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000-00010.json", "00010-00015.json"]
    # The run goes on to more studies: none counts twice.
    assert [record["study"] for record in simulated.run(simulate, 20, 1, tmp_path)] == list(range(20))
    assert simulated.records(20, tmp_path) == simulated.run(simulate, 20, 1, tmp_path)


class Inline:
    """An executor that works in this process."""

    def __init__(self, processes):
        self.processes = processes

    def submit(self, work, *arguments):
        from concurrent.futures import Future

        done = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self, cancel_futures):
        assert cancel_futures


@pytest.mark.parametrize(("noise", "number"), [("t3", 4), ("missing", 298)])
def test_a_profile_does_not_end_beside_its_estimate(monkeypatch, noise, number):
    """A descent to a distant target ended on another branch, and the upper end lay 0.0008 off the estimate.

    Near an optimum a profile is a parabola, so that neither side is several times as long as the other.
    """
    monkeypatch.setattr(coverage, "RESAMPLES", 100)
    for record in coverage.simulate(noise, "surface", range(number, number + 1)):
        above, below = record["high"] - record["exponent"], record["exponent"] - record["low"]
        assert 1 / 3 < above / below < 3
        assert record["low"] < coverage.true_slope(record["quantity"], coverage.INSIDE) < record["high"]
