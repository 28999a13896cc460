"""The isoFLOP laws of one group of runs by all estimators, with flags for what may invalidate them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from analysis.config import FitConfig, Labels
from analysis.format import fixed, number, plural
from analysis.isoflop.curves import Curves, Quantity, isoflop_curves
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR, EstimatorFit, EstimatorName, Inputs, Points
from analysis.isoflop.flags import group_flags
from analysis.isoflop.geometry import Geometry, geometry
from analysis.isoflop.parabola import fit_parabolas
from analysis.isoflop.screening import screen
from analysis.isoflop.shared_shape import fit_shared
from analysis.isoflop.surface_estimator import fit_parametric
from analysis.serialize import HIDDEN
from analysis.stats.bootstrap import Draws, draws, resample
from analysis.stats.noise import NoiseFloor
from analysis.tables.schema import TableError
from analysis.tables.selection import groups

Values = float | np.ndarray[Any, Any]
Estimator = Callable[[Inputs], EstimatorFit]
ESTIMATORS: tuple[Estimator, ...] = (fit_shared, fit_parabolas, fit_parametric)
NAMES: tuple[str, ...] = get_args(EstimatorName)  # of `ESTIMATORS`


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """The isoFLOP laws of one scale under one FLOP accounting."""

    label: str
    scale: str
    accounting: str
    runs: int
    budgets_flops: tuple[float, ...]
    swept: tuple[float, ...]  # values of the swept variable
    geometry: Geometry
    estimators: tuple[EstimatorFit, ...]
    flags: tuple[str, ...]
    table: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)
    inputs: Inputs = field(repr=False, compare=False, metadata=HIDDEN)

    @property
    def cells(self) -> Curves:
        """Return the isoFLOP cells."""
        return self.inputs.cells

    @property
    def quantities(self) -> tuple[Quantity, Quantity]:
        """Return the swept variable and the tokens."""
        return self.cells.quantities

    def estimator(self, name: str = DEFAULT_ESTIMATOR) -> EstimatorFit:
        """Return one estimator's results; `name` as printed or with underscores.

        Raises ValueError for an unknown name.
        """
        named = {item.name: item for item in self.estimators}
        spelled = name.replace("_", " ")
        if spelled not in named:
            raise ValueError(f"estimator={name} is unknown: choose from {', '.join(named)}")
        return named[spelled]

    def at_level(self, level: float) -> GroupFit:
        """Return the group with its intervals at another level of confidence, from the same resamples."""
        inputs = replace(self.inputs, config=replace(self.inputs.config, confidence=level))
        shown = {item.name for item in self.estimators}
        fits = (fit(inputs) for fit, name in zip(ESTIMATORS, NAMES, strict=True) if name in shown)
        return replace(self, inputs=inputs, estimators=tuple(fits))

    def summary(self) -> str:
        """Return the results of every estimator and the flags."""
        confidence = self.inputs.config.confidence
        estimators = (estimator.summary(confidence) for estimator in self.estimators)
        return "\n".join([*estimators, *(f"  flag: {flag}" for flag in self.flags)])

    def headline(self, quantity: Quantity) -> str:
        """Return the default estimator's law and the exponents of the others.

        Where it is refused: the reason, with those of the budgets behind it.
        """
        estimator = self.estimator()
        law = estimator.laws[quantity]
        if law.exponent is not None:
            others = [
                (other.name, other.laws.get(quantity)) for other in self.estimators if other is not estimator
            ]
            exponents = [
                f"{name} {fixed(other.exponent, 3)} "
                f"[{fixed(other.exponent_low, 3)}, {fixed(other.exponent_high, 3)}]"
                for name, other in others
                if other and other.exponent is not None
            ]
            return "; ".join([f"{law.summary()} by {estimator.name}", *exponents])
        reasons: dict[str, list[str]] = {}
        for optimum in estimator.optima[quantity]:
            if optimum.refusal:
                reason = optimum.refusal.split(" (")[0]
                # The ends of the swept tokens differ between budgets; those of the recurrences seldom do.
                key = reason.split(", which")[0] if quantity == "tokens" else reason
                reasons.setdefault(key, []).append(number(optimum.budget_flops))
        why = "; ".join(f"at {', '.join(budgets)} FLOPs {reason}" for reason, budgets in reasons.items())
        return f"no law, {law.refusal}" + (f" ({why})" if why and not estimator.refusal else "")

    def predict(self, flops: Values, estimator: str = DEFAULT_ESTIMATOR) -> pd.DataFrame:
        """Return the optima at budgets of `flops` by one estimator's power laws, one row per budget.

        The columns are flops, the swept variable, tokens and loss_nats, each of the latter with its interval
        (_low, _high). The loss is that of the fitted surface, the only law across budgets, at the optimal
        value of the swept variable; NaN where the surface was refused. Raises ValueError where the estimator
        has no power law.
        """
        budgets = np.atleast_1d(np.asarray(flops, float))
        columns = {"flops": budgets}
        for name, law in self.estimator(estimator).laws.items():
            columns[name] = law.predict(budgets)
            low, high = law.band(budgets, self.inputs.config.confidence)
            columns |= {f"{name}_low": low, f"{name}_high": high}
        surface = self.estimator("surface").across
        losses = (
            surface(columns[self.cells.variable], budgets) if surface else [np.full(len(budgets), np.nan)] * 3
        )
        columns |= dict(zip(("loss_nats", "loss_low_nats", "loss_high_nats"), losses, strict=True))
        return pd.DataFrame(columns)


def fit_groups(
    runs: pd.DataFrame, floor: NoiseFloor, config: FitConfig, estimators: Sequence[Estimator] = ESTIMATORS
) -> tuple[tuple[GroupFit, ...], tuple[str, ...]]:
    """Return the isoFLOP laws of every group of selected runs, and why other groups were skipped."""
    fitted, skipped = [], []
    plain = runs["kind"] == "transformer"
    if plain.any():
        skipped.append(
            f"{plural(int(plain.sum()), 'run')} of plain transformers: compare against=transformer reads them"
        )
    for label, frame in groups(runs[~plain]):
        table = frame.reset_index(drop=True)
        looped = table[table["kind"] == "looped"]
        shape = geometry(looped, config.parameter_count) if len(looped) else None
        cells = isoflop_curves(table, shape) if shape else None
        if shape is None or cells is None or not len(cells.rows):
            skipped.append(f"{label}: {len(looped)} looped runs, none on an isoFLOP curve")
            continue
        points = Points(
            rows=looped.index.to_numpy(),
            params=shape.params(looped["mean_recurrence"].to_numpy(float)),
            tokens=looped["tokens"].to_numpy(float),
            loss_nats=looped["val_loss_nats"].to_numpy(float),
        )
        inputs = Inputs(
            cells=cells,
            runs=points,
            shape=shape,
            draws=_draws(table, label, config),
            floor=floor,
            config=config,
            run_ids=table["run_id"].to_numpy(str),
        )
        names = str(table["scale"].iloc[0]), str(table["accounting"].iloc[0])
        fitted.append(fit_group(label, names, table, inputs, estimators))
    return tuple(fitted), tuple(skipped)


def _draws(table: pd.DataFrame, label: str, config: FitConfig) -> Draws:
    """Return the resamples of a group's runs."""
    drawn = draws(config.bootstrap, len(table), config.seed, label, trunks_of(table), config.shared_noise)
    strata, blocks = table["target_flops"].to_numpy(float), blocks_of(table, config)
    return resample(drawn, config.resampling, strata, blocks, label, config.seed)


def blocks_of(runs: pd.DataFrame, config: FitConfig) -> Labels:
    """Return the block of every run [runs]; a run without a label is a block of its own.

    Raises TableError if resampling=block names a column that the table lacks.
    """
    if config.block not in runs and config.resampling == "block":
        raise TableError(f"block={config.block} is no column of the runs table")
    return _labels(runs, config.block)


def trunks_of(runs: pd.DataFrame) -> Labels:
    """Return the trunk of every run [runs]; a run without one is its own."""
    return _labels(runs, "trunk_id")


def _labels(runs: pd.DataFrame, column: str) -> Labels:
    names = runs["run_id"].to_numpy(str)
    labels = runs[column].fillna("").to_numpy(str) if column in runs else np.full(len(names), "")
    return np.where(labels == "", names, labels)


def fit_group(
    label: str,
    names: tuple[str, str],
    table: pd.DataFrame,
    inputs: Inputs,
    estimators: Sequence[Estimator] = ESTIMATORS,
) -> GroupFit:
    """Return the fit of one group by the given estimators; `names` are its scale and FLOP accounting."""
    screening = screen(inputs.cells, inputs.run_ids)
    inputs = inputs.screened(screening.kept, screening.trend, screening.no_curve)
    fits = tuple(estimator(inputs) for estimator in estimators)
    return GroupFit(
        label=label,
        scale=names[0],
        accounting=names[1],
        runs=len(table),
        budgets_flops=tuple(inputs.cells.budgets_flops.tolist()),
        swept=tuple(np.unique(inputs.cells.values).tolist()),
        geometry=inputs.shape,
        estimators=fits,
        flags=(*screening.flags, *group_flags(table, inputs, fits)),
        table=table,
        inputs=inputs,
    )
