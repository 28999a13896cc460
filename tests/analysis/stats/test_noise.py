import numpy as np
import pytest
from scipy.stats import f

from analysis import FitConfig
from analysis.isoflop.group import fit_groups
from analysis.isoflop.parabola import fit_parabolas
from analysis.isoflop.shared_shape import fit_shared
from analysis.stats.bootstrap import NoiseLevel, draws, interval, studentised
from analysis.stats.noise import noise_floor
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
    assert floor.summary() == (
        "training noise 0.0255 nats (pooled over 2 replicated cells, 4 degrees of freedom)"
    )


def test_one_seed_leaves_the_noise_unknown():
    runs, _ = study(budgets=(1e18,))
    floor = noise_floor(runs)
    assert floor.sd_nats is None
    assert floor.summary().startswith("training noise unknown")


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


def test_residuals_beyond_the_replicates_widen_the_intervals_and_say_so():
    config = FitConfig(bootstrap=200, profiles=False)
    runs, _ = study(noise_nats=0.002, replicates=((0, 1), (2, 2), (3, 4)), seed=3)
    (quiet,), _ = fit_groups(runs, noise_floor(runs), config)
    bent = runs.copy()
    wave = 0.02 * np.cos(2.0 * bent["mean_recurrence"])  # no curve of the form bends like this
    bent["val_loss_nats"] += np.where(bent["kind"] == "looped", wave, 0.0)
    (loud,), _ = fit_groups(bent, noise_floor(bent), config)
    for name in ("shared shape", "parabola", "surface"):
        known, larger = quiet.estimator(name).noise, loud.estimator(name).noise
        assert known.source == "replicate seeds" and known.lack_of_fit > 0.01
        assert larger.source == "residuals of this fit" and larger.lack_of_fit < 1e-4
        assert larger.widened and not known.widened and larger.sd_nats > 4 * known.sd_nats
        assert any(flag.startswith(f"{name}: runs scatter") for flag in loud.flags)
        assert not any(flag.startswith(f"{name}: runs scatter") for flag in quiet.flags)
    widths = [
        group.estimator("parabola").laws["mean_recurrence"].exponent_high
        - group.estimator("parabola").laws["mean_recurrence"].exponent_low
        for group in (quiet, loud)
    ]
    assert widths[1] > 2 * widths[0]


def test_the_test_for_lack_of_fit_is_that_of_the_textbook():
    """Replicates of three cells (pure error, 6 degrees of freedom) against the rest of the residuals."""
    config = FitConfig(bootstrap=50)
    runs, _ = study(noise_nats=0.004, replicates=((0, 1), (2, 2), (3, 4)), seed=5, fixed=False)
    (group,), _ = fit_groups(runs, noise_floor(runs), config, (fit_parabolas,))
    found = group.estimator("parabola")
    total = dict.fromkeys(("mean_recurrence", "tokens"), 0.0)
    for quantity in total:
        for _, curve in runs.groupby("target_flops"):
            x, losses = np.log(curve[quantity].to_numpy(float)), curve["val_loss_nats"].to_numpy()
            total[quantity] += np.polyfit(x, losses, 2, full=True)[1][0]
    freedom = len(runs) - 3 * 5
    cells = runs.groupby(["target_flops", "mean_recurrence"])["val_loss_nats"]
    pure = float((cells.var(ddof=0) * cells.size()).sum())
    within = int((cells.size() - 1).sum())
    misfit = (max(total.values()) - pure) / (freedom - within)
    assert found.noise.misfit_sd_nats == pytest.approx(np.sqrt(misfit))
    assert found.noise.lack_of_fit == pytest.approx(f.sf(misfit / (pure / within), freedom - within, within))


def test_equal_noise_is_seldom_taken_for_a_wrong_form():
    """At 1 %, 40 studies of the right form lose their replicates at most twice (chance of more: .7 %)."""
    config, larger = FitConfig(bootstrap=20), 0
    for seed in range(40):
        runs, _ = study(noise_nats=0.004, replicates=((0, 1), (2, 2), (3, 4)), seed=seed, fixed=False)
        (group,), _ = fit_groups(runs, noise_floor(runs), config, (fit_shared,))
        larger += group.estimator().noise.widened
    assert larger <= 2
