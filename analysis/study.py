"""`fit`: from the two tables of a study to its laws, with intervals and refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis import plain, words
from analysis.checks import Check, checks
from analysis.config import FitConfig
from analysis.depth import DepthStudy, depth_study
from analysis.estimator import DEFAULT, QUANTITIES, EstimatorFit, Inputs
from analysis.geometry import Geometry, geometry
from analysis.isoflop import HIDDEN, Curves, curves
from analysis.noise import NoiseFloor, noise_floor
from analysis.numbers import number
from analysis.parabola import fit_parabolas
from analysis.parametric import fit_parametric
from analysis.resample import draws
from analysis.schema import DEPTHS, conform
from analysis.shared_shape import fit_shared
from analysis.tables import LeftOut, digest, groups, select

RESULT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """The isoFLOP laws of one scale under one FLOP accounting."""

    label: str
    scale: str
    accounting: str
    runs: int
    budgets_flops: tuple[float, ...]
    recurrences: tuple[float, ...]
    geometry: Geometry
    estimators: tuple[EstimatorFit, ...]
    flags: tuple[str, ...]
    table: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)
    cells: Curves = field(repr=False, compare=False, metadata=HIDDEN)

    def estimator(self, name: str = DEFAULT) -> EstimatorFit:
        """Return one estimator's results."""
        return next(item for item in self.estimators if item.name == name)


@dataclass(frozen=True, kw_only=True)
class StudyFit:
    """All laws of a study, what was refused and why, and where the numbers come from."""

    version: int = RESULT_VERSION
    config: FitConfig
    runs_digest: str
    depths_digest: str
    runs_used: int
    noise: NoiseFloor
    groups: tuple[GroupFit, ...]
    depth: DepthStudy
    checks: tuple[Check, ...]
    left_out: tuple[LeftOut, ...]
    skipped: tuple[str, ...]  # groups without an isoFLOP curve, and why
    runs: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)
    depths: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)

    def summary(self) -> str:
        """Return the whole result as plain text."""
        return words.summary(self)

    def headlines(self) -> list[str]:
        """Return the laws, or the refusals with their reasons, in at most three lines."""
        return words.headlines(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dict(plain.plain(self))

    def to_json(self) -> str:
        """Return the result as JSON text, the same bytes for the same tables and seed."""
        return plain.to_json(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the isoFLOP curves of the first group on a matplotlib axis and return it."""
        from analysis.figures import plot_isoflop

        return plot_isoflop(self.groups[0], "mean_recurrence", ax)


def fit(runs: pd.DataFrame, depths: pd.DataFrame, config: FitConfig | None = None) -> StudyFit:
    """Fit every law of a study from its runs and depth tables.

    Raises TableError for tables that are malformed, empty, or hold runs of different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    depths = conform(depths, DEPTHS).sort_values(["run_id", "depth"], kind="stable").reset_index(drop=True)
    floor = noise_floor(selection.runs)
    fitted, skipped = fit_groups(selection.runs, floor, config)
    return StudyFit(
        config=config,
        runs_digest=digest(runs),
        depths_digest=digest(depths),
        runs_used=len(selection.runs),
        noise=floor,
        groups=fitted,
        depth=depth_study(selection.runs, depths, config),
        checks=checks(selection.runs, floor),
        left_out=selection.left_out,
        skipped=skipped,
        runs=selection.runs,
        depths=depths,
    )


def fit_groups(
    runs: pd.DataFrame, floor: NoiseFloor, config: FitConfig
) -> tuple[tuple[GroupFit, ...], tuple[str, ...]]:
    """Fit the isoFLOP laws of every group of selected runs; return also why groups were skipped."""
    fitted, skipped = [], []
    for label, frame in groups(runs):
        table = frame.reset_index(drop=True)
        looped = table[table["kind"] == "looped"]
        shape = geometry(looped, config.parameter_count) if len(looped) else None
        cells = curves(table, shape) if shape else None
        if shape is None or cells is None or not len(cells.rows):
            skipped.append(f"{label}: {len(looped)} looped runs, none on an isoFLOP curve")
            continue
        inputs = Inputs(
            group=table,
            cells=cells,
            shape=shape,
            draws=draws(config.bootstrap, len(table), config.seed, label),
            floor=floor,
            config=config,
        )
        estimators = (fit_shared(inputs), fit_parabolas(inputs), fit_parametric(inputs))
        fitted.append(
            GroupFit(
                label=label,
                scale=str(table["scale"].iloc[0]),
                accounting=str(table["accounting"].iloc[0]),
                runs=len(table),
                budgets_flops=tuple(cells.budgets_flops.tolist()),
                recurrences=tuple(np.unique(cells.mean_recurrence).tolist()),
                geometry=shape,
                estimators=estimators,
                flags=_disagreements(estimators, config) + _truncated(cells),
                table=table,
                cells=cells,
            )
        )
    return tuple(fitted), tuple(skipped)


def _disagreements(estimators: tuple[EstimatorFit, ...], config: FitConfig) -> tuple[str, ...]:
    """Name pairs of estimators whose exponents differ by more than their joint bootstrap scatters."""
    found = []
    for quantity in QUANTITIES:
        for one, other in combinations(estimators, 2):
            first, second = one.laws[quantity], other.laws[quantity]
            if first.exponent is None or second.exponent is None:
                continue
            gap = first.exponent - second.exponent
            scatter = np.abs(first.draws[:, 1] - second.draws[:, 1] - gap)
            bound = float(np.nanquantile(scatter, config.confidence))
            if abs(gap) > bound:
                found.append(
                    f"{one.name} and {other.name} disagree on the exponent of {words.QUANTITY[quantity]}: "
                    f"{first.exponent:.3f} and {second.exponent:.3f}, joint scatter {bound:.3f}"
                )
    return tuple(found)


def _truncated(cells: Curves) -> tuple[str, ...]:
    """Name budgets whose curve lacks recurrences at one end that other budgets have."""
    low, high = cells.mean_recurrence.min(), cells.mean_recurrence.max()
    found = []
    for k, flops in enumerate(cells.budgets_flops):
        first, last = cells.swept("mean_recurrence", k)
        if first > low or last < high:
            found.append(
                f"the curve at {number(flops)} FLOPs spans µ = {first:g} to {last:g} of {low:g} to {high:g}: "
                "a curve cut on one side biases its parabola"
            )
    return tuple(found)
