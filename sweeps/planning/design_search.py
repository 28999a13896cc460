"""`plan design=search`: the grid whose interval is narrowest for an allowance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.config import FitConfig, Progress
from analysis.design.fisher_information import information
from analysis.design.grid_search import Limits, best_grids
from analysis.design.ground_truth import Generator
from analysis.design.power import DesignConfig, Resolution
from analysis.design.simulate import Grid, Noise, estimate, grid
from analysis.design.studies import expected_losses, resolve
from analysis.format import number, percent
from analysis.stats.bootstrap import student_factor
from analysis.stats.noise import noise_floor
from model.config_validation import ConfigError
from sweeps.config.study import StudyConfig, SweepConfig
from sweeps.planning.design import (
    allowance,
    check_reachable,
    design_config,
    ladder,
    laws,
    noise_of,
    planned_runs,
    target_of,
)
from sweeps.planning.design_files import searched_sweep

FINALISTS, FINAL_STUDIES = 6, 300
WANTED_INSIDE = 0.9  # share of the studies whose minima all lie inside a grid that a search returns


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A grid for an allowance, and what it and the planned one resolve under each law."""

    sweep: SweepConfig
    allowance_flops: float
    planned: tuple[Resolution, ...]
    found: tuple[Resolution, ...]
    considered: int
    target_flops: float | None = None  # of the optimum that was narrowed, None: the exponent

    @property
    def keeps_minima_inside(self) -> bool:
        """Tell whether the minima lie inside the grid in enough studies, under every law."""
        return min(item.all_inside for item in self.found) >= WANTED_INSIDE

    def summary(self) -> str:
        """Return the grid and the comparison in words."""
        lines = [
            f"best of {self.considered} simulated grids within {number(self.allowance_flops)} FLOPs: "
            f"{self.found[0].runs} looped runs, {number(self.found[0].nominal_flops)} FLOPs",
            *(
                f"  {number(item.lengths[0])} FLOPs: µ = {', '.join(str(mu) for mu in item.mean_recurrences)}"
                + (f", seeds {', '.join(map(str, item.seeds))}" if len(item.seeds) > 1 else "")
                for item in self.sweep.cells.values()
            ),
        ]
        for before, after in zip(self.planned, self.found, strict=True):
            told = _narrower(before, after, self.target_flops)
            lines.append(f"  {told}; minima all inside in {percent(after.all_inside)}")
        if not self.keeps_minima_inside:
            lines.append(
                f"  no simulated grid keeps all minima inside in {percent(WANTED_INSIDE)} of the studies "
                "under every law; more recurrences may: assume.recurrences=[...]"
            )
        return "\n".join(lines)


def search(
    study: StudyConfig,
    progress: Progress = lambda stage, done: None,
    truths: Sequence[Generator] | None = None,
) -> Searched:
    """Return the grid whose interval is narrowest for the allowance; writes nothing.

    Grids are ranked to first order; the first ones are simulated under every law, and the narrowest is taken
    whose minima all lie inside it. `truths` stand in for the laws of `assume`. Raises ConfigError where no
    grid of four budgets is within the allowance.
    """
    frame, assume = planned_runs(study), study.assume
    bench = grid(frame, FitConfig().parameter_count)
    noise, config = noise_of(study, frame), design_config(study, bench)
    truths = list(truths or laws(study, bench))
    spend = allowance(study, frame, float(frame["nominal_flops"].sum()))
    budgets = np.array(assume.budgets_flops or ladder(bench.cells.budgets_flops, 1.0))
    depths, target = np.array(assume.recurrences, float), target_of(study, config)
    knowledge = information(truths, bench.shape, budgets, depths, noise.seed_nats, target)
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
        other = grid(planned_runs(replace(study, sweep=sweep)), FitConfig().parameter_count)
        outcomes = [_brief(other, law, noise, config, target) for law in truths]
        inside = min(share for _, share in outcomes)
        width = float(np.mean([width for width, _ in outcomes]))
        tried.append((min(inside, WANTED_INSIDE), -width, sweep, other))
    progress("grids simulated", 1.0)
    _, _, sweep, other = max(tried, key=lambda item: item[:2])
    return Searched(
        sweep=sweep,
        allowance_flops=spend,
        planned=tuple(resolve(bench, law, noise, config, progress) for law in truths),
        found=tuple(resolve(other, law, noise, config, progress) for law in truths),
        considered=len(tried),
        target_flops=target,
    )


def _brief(
    bench: Grid, law: Generator, noise: Noise, config: DesignConfig, target_flops: float | None
) -> tuple[float, float]:
    """Return the log of a short simulation's interval, and how often all minima lie inside the grid.

    The interval is that of the log optimum at `target_flops`, or of the exponent where that is None.
    """
    clean = expected_losses(bench, law, config.margin_nats)
    losses = clean + noise.draw(bench.runs, FINAL_STUDIES, config.seed)
    found = estimate(bench, clean, losses, thorough=False)[0]
    level, slope = found.line(bench, "mean_recurrence", target_flops or 1.0)
    wanted = slope if target_flops is None else level
    known = wanted[np.isfinite(wanted)]
    if len(known) < FINAL_STUDIES / 2:
        return np.inf, 0.0
    floor = noise_floor(bench.runs.assign(val_loss_nats=losses[0]))
    freedom = floor.degrees_of_freedom or len(bench.cells.rows) - 3 * len(found.budgets) - 2
    low, high = np.quantile(known, [0.025, 0.975])
    return float(np.log((high - low) * student_factor(freedom))), float(
        found.inside["mean_recurrence"].all(1).mean()
    )


def _narrower(before: Resolution, after: Resolution, target_flops: float | None) -> str:
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
