import numpy as np
import pytest

from analysis.noise import noise_floor
from analysis.resample import NoiseLevel, draws, interval, studentised
from tests.analysis.synthetic import study


def test_seed_variance_is_pooled_over_cells():
    runs, _ = study(budgets=(1e18, 2e18), replicates=((0, 1), (1, 2)))
    looped = runs["kind"] == "looped"
    first = looped & (runs["mean_recurrence"] == 4) & (runs["target_flops"] == 1e18)
    second = looped & (runs["mean_recurrence"] == 6) & (runs["target_flops"] == 2e18)
    runs.loc[first, "val_loss_nats"] = [3.00, 3.01, 3.02]
    runs.loc[second, "val_loss_nats"] = [2.90, 2.90, 2.96]
    floor = noise_floor(runs)
    # Sums of squared deviations 2e-4 and 2.4e-3 over 2 + 2 degrees of freedom.
    assert floor.sd_nats == pytest.approx(np.sqrt(2.6e-3 / 4))
    assert floor.degrees_of_freedom == 4
    assert floor.sentence() == (
        "training noise 0.0255 nats (pooled over 2 replicated cells, 4 degrees of freedom)"
    )


def test_one_seed_leaves_the_noise_unknown():
    runs, _ = study(budgets=(1e18,))
    floor = noise_floor(runs)
    assert floor.sd_nats is None
    assert floor.sentence().startswith("training noise unknown")


def test_the_same_cell_at_two_budgets_is_not_a_replicate():
    runs, _ = study(budgets=(1e18, 1.01e18))
    assert noise_floor(runs).degrees_of_freedom == 0


def test_resamples_widen_as_students_t_does():
    level = NoiseLevel(sd_nats=0.01, degrees_of_freedom=4, source="replicate seeds")
    drawn = draws(200_000, 1, 0, "group")
    errors = studentised(drawn.noise(level)[:, 0], drawn.factor(level))
    # Student's t with 4 degrees of freedom: two-sided 95 % at 2.776.
    assert np.quantile(errors, 0.975) == pytest.approx(0.02776, rel=0.01)


def test_intervals_open_where_resamples_run_away():
    samples = np.concatenate([np.linspace(0, 1, 90), np.full(10, np.inf)])
    low, high = interval(samples, 0.95)
    assert high is None
    assert low == pytest.approx(0.02, abs=0.02)
    assert interval(np.full(5, np.nan), 0.95) == (None, None)
