"""Simulated studies of a grid, many at once, through the estimators that a real study is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import Array, FitConfig, ParameterCount
from analysis.design.ground_truth import GroundTruth
from analysis.isoflop.curves import Curves, Quantity, is_interior, isoflop_curves, too_few_values
from analysis.isoflop.estimator import EstimatorName, Inputs, Points, as_quantity
from analysis.isoflop.geometry import Geometry, geometry
from analysis.isoflop.group import trunks_of
from analysis.isoflop.parabola import fit_parabola, minimum
from analysis.isoflop.power_law import lines
from analysis.isoflop.shared_shape import minima as shared_minima
from analysis.isoflop.surface_estimator import minima as surface_minima
from analysis.laws.surface import fit_surface, refit
from analysis.laws.variable_projection import fit_shared_shape
from analysis.stats.bootstrap import draws
from analysis.stats.noise import NoiseFloor, noise_floor
from analysis.tables.schema import TableError
from analysis.tables.selection import CELL

UNKNOWN = NoiseFloor(sd_nats=None, degrees_of_freedom=0)
QUANTITIES: tuple[Quantity, Quantity] = ("mean_recurrence", "tokens")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviations in nats of what makes a run's loss differ from the law.

    `seed` is drawn for every run. `trunk` is drawn once for the runs of one `trajectory`, whose first steps
    are the same whether they share a trunk or not, and for every run that has none. `evaluation` is what the
    held-out sample adds to one cell and not to others: all its seeds are scored on the same text, so that
    replicates neither show nor average it. `tail` is the degrees of freedom of Student's t in place of the
    normal law, at the same standard deviation.
    """

    seed_nats: float
    trunk_nats: float = 0.0
    evaluation_nats: float = 0.0
    tail: float | None = None

    @property
    def shared(self) -> float:
        """Return the share of a run's variance that is common to the runs of its trunk."""
        return self.trunk_nats**2 / (self.seed_nats**2 + self.trunk_nats**2)

    def draw(self, runs: pd.DataFrame, studies: int, seed: int) -> Array:
        """Return errors [studies, runs]."""
        generator = np.random.default_rng(seed)
        trunks = runs["trajectory"].to_numpy(str) if "trajectory" in runs else np.full(len(runs), "")
        trunks = np.where(trunks == "", [f"run {k}" for k in range(len(runs))], trunks)
        cells = runs[["kind", "mean_recurrence", "target_flops"]].astype(str).agg("|".join, axis=1)
        total = np.zeros((studies, len(runs)))
        for size, labels in (
            (self.seed_nats, np.arange(len(runs))),
            (self.trunk_nats, trunks),
            (self.evaluation_nats, cells.to_numpy()),
        ):
            names, place = np.unique(labels, return_inverse=True)
            drawn = self._standard(generator, (studies, len(names)))
            total += size * drawn[:, place]
        return total

    def _standard(self, generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        if self.tail is None:
            return generator.standard_normal(shape)
        return np.asarray(generator.standard_t(self.tail, shape) * np.sqrt((self.tail - 2) / self.tail))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The runs of a planned study as the estimators will see them; their losses are not known yet."""

    runs: pd.DataFrame
    shape: Geometry
    cells: Curves

    replicated: bool  # some cell has several seeds, so that a study knows its noise

    @property
    def looped(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows of looped runs."""
        return np.flatnonzero((self.runs["kind"] == "looped").to_numpy())

    def expected(self, law: GroundTruth) -> Array:
        """Return the law's loss of every run in nats [runs]."""
        return law.loss(self.runs["mean_recurrence"].to_numpy(float), self.runs["tokens"].to_numpy(float))

    def inputs(self, losses: Array, config: FitConfig, label: str) -> Inputs:
        """Return what an analyst's estimators are given once the runs [runs] ended at `losses`."""
        runs = self.runs.assign(val_loss_nats=losses)
        looped = runs.iloc[self.looped]
        return Inputs(
            cells=replace(self.cells, loss_nats=losses[self.cells.rows]),
            runs=Points(
                rows=self.looped,
                params=self.shape.params(looped["mean_recurrence"].to_numpy(float)),
                tokens=looped["tokens"].to_numpy(float),
                loss_nats=losses[self.looped],
            ),
            shape=self.shape,
            draws=draws(
                config.bootstrap, len(runs), config.seed, label, trunks_of(runs), config.shared_noise
            ),
            floor=noise_floor(runs) if self.replicated else UNKNOWN,
            config=config,
            run_ids=runs["run_id"].to_numpy(str),
        )


def grid(runs: pd.DataFrame, parameter_count: ParameterCount) -> Grid:
    """Return a grid from planned runs of one scale and accounting.

    Raises TableError where no run lies on an isoFLOP curve, or none of those has recurrences enough.
    """
    runs = runs.reset_index(drop=True)
    runs["run_id"] = [f"run {k}" for k in range(len(runs))]
    runs["val_loss_nats"] = np.nan
    looped = runs[runs["kind"] == "looped"]
    if looped.empty:
        raise TableError("the grid has no looped runs: there is no recurrence to find the optimum of")
    shape = geometry(looped, parameter_count)
    cells = isoflop_curves(runs, shape)
    reasons = [too_few_values(cells, k) for k in range(len(cells.budgets_flops))]
    if None not in reasons:
        raise TableError(
            f"no curve of the grid can be fitted: {(reasons or ['no run on an isoFLOP curve'])[0]}"
        )
    replicated = bool(runs.duplicated(list(CELL)).any())
    return Grid(runs=runs, shape=shape, cells=cells, replicated=replicated)


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What one estimator says of every study; `budgets` are those whose curve it fits."""

    name: EstimatorName
    budgets: list[int]
    log_optima: dict[Quantity, Array]  # [studies, budgets]; infinite or NaN without a minimum
    inside: dict[Quantity, np.ndarray[Any, np.dtype[np.bool_]]]  # [studies, budgets], off the edges
    loss_nats: Array  # [studies, budgets] at the minimum in recurrence

    def line(self, grid: Grid, quantity: Quantity, flops: float) -> tuple[Array, Array]:
        """Return the log of the power law at `flops` and its exponent [studies]; NaN below three budgets."""
        x = np.log(grid.cells.budgets_flops[self.budgets] / flops)
        return lines(x, self.log_optima[quantity], self.inside[quantity])


def estimate(grid: Grid, clean: Array, losses: Array, *, thorough: bool = True) -> tuple[Estimates, ...]:
    """Fit all studies, losses [studies, runs], by shared shape, parabola and surface.

    The descents of the surface start at the fit of the noise-free losses `clean` [runs]; those of the shared
    shape at the best of a grid, as for one study, or, not `thorough`, at the noise-free fit too.
    """
    cells = grid.cells
    usable = [k for k in range(len(cells.budgets_flops)) if too_few_values(cells, k) is None]
    inputs = grid.inputs(clean, FitConfig(bootstrap=100), "")
    path = inputs.path(usable)
    estimates = [_shared(grid, usable, clean, losses, thorough)]
    parabolas = {quantity: _parabolas(grid, quantity, usable, losses) for quantity in QUANTITIES}
    places = {quantity: minima[0] for quantity, minima in parabolas.items()}
    estimates.append(_judged(grid, "parabola", usable, places, parabolas["mean_recurrence"][1]))
    runs = inputs.runs
    surface = fit_surface(np.log(runs.params), np.log(runs.tokens), runs.loss_nats)
    s, value = surface_minima(path, refit(surface, losses[:, runs.rows]))
    estimates.append(_judged(grid, "surface", usable, _both(grid, usable, s), value))
    return tuple(estimates)


def _shared(grid: Grid, usable: list[int], clean: Array, losses: Array, thorough: bool) -> Estimates:
    cells = grid.cells
    at = np.isin(cells.budget, usable)
    index = np.searchsorted(usable, cells.budget[at])
    u, v = np.log(cells.params[at]), np.log(cells.tokens[at])
    rows = cells.rows[at]
    start = None if thorough else fit_shared_shape(u, v, clean[None, rows], index).exponents[0]
    fit = fit_shared_shape(u, v, losses[:, rows], index, start=start)
    path = grid.inputs(clean, FitConfig(bootstrap=100), "").path(usable)
    s, value = shared_minima(path, fit)
    return _judged(grid, "shared shape", usable, _both(grid, usable, s), value)


def _parabolas(grid: Grid, quantity: Quantity, usable: list[int], losses: Array) -> tuple[Array, Array]:
    places, values = [], []
    for k in usable:
        at = grid.cells.budget == k
        x = np.log(grid.cells.axis(quantity)[at])
        place, value = minimum(x, fit_parabola(x, losses[:, grid.cells.rows[at]])[0])
        places.append(place)
        values.append(value)
    return np.stack(places, -1), np.stack(values, -1)


def _both(grid: Grid, usable: list[int], s: Array) -> dict[Quantity, Array]:
    flops = grid.cells.budgets_flops[usable]
    tokens = [as_quantity("tokens", grid.shape, float(c), s[:, k]) for k, c in enumerate(flops)]
    return {"mean_recurrence": s, "tokens": np.stack(tokens, -1)}


def _judged(
    grid: Grid, name: EstimatorName, usable: list[int], log_optima: dict[Quantity, Array], losses: Array
) -> Estimates:
    within = {
        quantity: np.stack(
            [is_interior(logs[:, k], grid.cells.swept(quantity, b)) for k, b in enumerate(usable)], -1
        )
        for quantity, logs in log_optima.items()
    }
    return Estimates(name=name, budgets=usable, log_optima=log_optima, inside=within, loss_nats=losses)
