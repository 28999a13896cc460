"""`plan design=search`: the grid whose interval is narrowest for an allowance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.config import FitConfig, Progress
from analysis.design import simulate
from analysis.design.fisher_information import fisher_information
from analysis.design.grid_search import Limits, best_grids
from analysis.design.ground_truth import GroundTruth
from analysis.design.power import DesignConfig, PowerAnalysis
from analysis.design.simulate import Grid, Noise, estimate
from analysis.design.studies import analyse_power, expected_losses
from analysis.format import number, percent
from analysis.stats.bootstrap import student_factor
from analysis.stats.noise import noise_floor
from model.config_validation import ConfigError
from sweeps.config.study import StudyConfig, SweepConfig
from sweeps.planning.design import (
    allowance_flops,
    assumed_laws,
    assumed_noise,
    budget_ladder,
    check_reachable,
    design_config,
    narrowed_target,
    planned_runs,
)
from sweeps.planning.design_files import searched_sweep

FINALISTS, FINAL_STUDIES = 6, 300
REQUIRED_INSIDE = 0.9  # share of the studies in which all minima must lie inside the chosen grid


@dataclass(frozen=True, kw_only=True)
class SearchedGrid:
    """The best grid for an allowance, and what it and the planned one resolve under each law."""

    sweep: SweepConfig
    allowance_flops: float
    planned: tuple[PowerAnalysis, ...]
    searched: tuple[PowerAnalysis, ...]
    considered: int
    target_flops: float | None = None  # of the optimum that was narrowed, None: the exponent

    @property
    def keeps_minima_inside(self) -> bool:
        """Return True if all minima lie inside the grid in enough studies, under every law."""
        return min(item.all_inside for item in self.searched) >= REQUIRED_INSIDE

    def summary(self) -> str:
        """Return the grid and the comparison as text."""
        lines = [
            f"best of {self.considered} simulated grids within {number(self.allowance_flops)} FLOPs: "
            f"{self.searched[0].runs} looped runs, {number(self.searched[0].nominal_flops)} FLOPs",
            *(
                f"  {number(item.lengths[0])} FLOPs: µ = {', '.join(str(mu) for mu in item.mean_recurrences)}"
                + (f", seeds {', '.join(map(str, item.seeds))}" if len(item.seeds) > 1 else "")
                for item in self.sweep.cells.values()
            ),
        ]
        for before, after in zip(self.planned, self.searched, strict=True):
            change = _interval_change(before, after, self.target_flops)
            lines.append(f"  {change}; minima all inside in {percent(after.all_inside)}")
        if not self.keeps_minima_inside:
            lines.append(
                f"  no simulated grid keeps all minima inside in {percent(REQUIRED_INSIDE)} of the studies "
                "under every law; more recurrences may: assume.recurrences=[...]"
            )
        return "\n".join(lines)


def search(
    study: StudyConfig,
    progress: Progress = lambda stage, done: None,
    truths: Sequence[GroundTruth] | None = None,
) -> SearchedGrid:
    """Return the grid whose interval is narrowest for the allowance; writes nothing.

    Grids are ranked to first order. The best ones are simulated under every law, and the narrowest of those
    that keep all minima inside is taken. `truths` replace the laws of `assume`.

    Raises
    ------
    ConfigError : the allowance pays for no grid of four budgets.
    """
    frame, assume = planned_runs(study), study.assume
    grid = simulate.grid(frame, FitConfig().parameter_count)
    noise, config = assumed_noise(study, frame), design_config(study, grid)
    truths = list(truths or assumed_laws(study, grid))
    spend = allowance_flops(study, frame, float(frame["nominal_flops"].sum()))
    budgets = np.array(assume.budgets_flops or budget_ladder(grid.cells.budgets_flops, 1.0))
    depths, target = np.array(assume.recurrences, float), narrowed_target(study, config)
    knowledge = fisher_information(truths, grid.shape, budgets, depths, noise.seed_nats, target)
    check_reachable(knowledge)
    limits = Limits(
        run_flops=budgets,
        control_flops=budgets if study.sweep.control != "none" else 0 * budgets,
        allowance_flops=spend,
        runs=assume.max_runs,
        per_cell=assume.max_seeds,
    )
    ranked = best_grids(knowledge, limits, FINALISTS, progress)
    if not ranked:
        raise ConfigError(
            f"allowance={spend:.3g} FLOPs pays for no grid of four budgets by four recurrences: raise it, "
            "or lower assume.budgets_flops"
        )
    tried = []
    for done, counts in enumerate(ranked):
        progress("grids simulated", done / len(ranked))
        sweep = searched_sweep(study.sweep, knowledge, counts)
        other = simulate.grid(planned_runs(replace(study, sweep=sweep)), FitConfig().parameter_count)
        outcomes = [_simulate_briefly(other, law, noise, config, target) for law in truths]
        inside = min(share for _, share in outcomes)
        width = float(np.mean([width for width, _ in outcomes]))
        tried.append((min(inside, REQUIRED_INSIDE), -width, sweep, other))
    progress("grids simulated", 1.0)
    _, _, sweep, other = max(tried, key=lambda item: item[:2])
    return SearchedGrid(
        sweep=sweep,
        allowance_flops=spend,
        planned=tuple(analyse_power(grid, law, noise, config, progress) for law in truths),
        searched=tuple(analyse_power(other, law, noise, config, progress) for law in truths),
        considered=len(tried),
        target_flops=target,
    )


def _simulate_briefly(
    grid: Grid, law: GroundTruth, noise: Noise, config: DesignConfig, target_flops: float | None
) -> tuple[float, float]:
    """Return the log of a short simulation's interval, and how often all minima lie inside the grid.

    The interval is that of the log optimum at `target_flops`, or of the exponent where that is None.
    """
    clean = expected_losses(grid, law, config.margin_nats)
    losses = clean + noise.draw(grid.runs, FINAL_STUDIES, config.seed)
    estimates = estimate(grid, clean, losses, thorough=False)[0]
    level, slope = estimates.line(grid, "mean_recurrence", target_flops or 1.0)
    values = slope if target_flops is None else level
    known = values[np.isfinite(values)]
    if len(known) < FINAL_STUDIES / 2:
        return np.inf, 0.0
    floor = noise_floor(grid.runs.assign(val_loss_nats=losses[0]))
    freedom = floor.degrees_of_freedom or len(grid.cells.rows) - 3 * len(estimates.budgets) - 2
    low, high = np.quantile(known, [0.025, 0.975])
    return float(np.log((high - low) * student_factor(freedom))), float(
        estimates.inside["mean_recurrence"].all(1).mean()
    )


def _interval_change(before: PowerAnalysis, after: PowerAnalysis, target_flops: float | None) -> str:
    at_target = target_flops is not None
    one, other = before.of(target=at_target), after.of(target=at_target)
    what = "the exponent" if target_flops is None else f"µ* at {number(target_flops)} FLOPs"
    if other.interval is None:
        return f"{after.law}: no interval of {what}"
    width = _width(other.interval, at_target)
    if one.interval is None:
        return f"{after.law}: interval of {what} {width}, the planned grid gives none"
    change = other.interval / one.interval - 1
    widths = f"{width} instead of {_width(one.interval, at_target)} ({change:+.0%})"
    return f"{after.law}: interval of {what} {widths}"


def _width(interval: float, is_log: bool) -> str:
    return f"a factor of {number(float(np.exp(interval)))}" if is_log else f"{interval:.3f}"
