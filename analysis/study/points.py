"""isoFLOP laws of a table of points: a CSV or DataFrame with a budget, one swept variable and a loss.

    fit = isoflop(read_points("points.csv", {"compute": "flops", "x": "params", "loss": "val_loss"}))
    fit.summary(); fit.predict(1e22); fit.to_json(); analysis.plot(fit, ax=ax)

FLOPs are counted as C = 6 N D; the swept variable may be parameters or tokens. `fit_law_to_points` fits any
other law of the registry to such a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis import serialize
from analysis.config import FitConfig
from analysis.isoflop.curves import QUANTITY_NAMES, Curves
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR, Inputs, Points
from analysis.isoflop.geometry import PLAIN_TRANSFORMER
from analysis.isoflop.group import GroupFit, fit_group
from analysis.laws.fit import fit_law
from analysis.laws.function_law import as_law
from analysis.laws.result import LawFit
from analysis.stats.bootstrap import draws, resample
from analysis.stats.noise import NoiseFloor
from analysis.study.holdout import Holdout, holdout
from analysis.study.sensitivity import Variant, sensitivity, variants_summary
from analysis.tables.readers import read_source
from analysis.tables.schema import TableError
from analysis.tables.selection import digest

COLUMNS = ("compute", "x", "loss")
SAME_BUDGET = 0.01  # budgets whose logs differ by less are one: digitised tables jitter
Swept = Literal["params", "tokens"]


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """The laws of one table of points; loss may be in any unit, and is reported in the table's own."""

    config: FitConfig
    points_digest: str
    group: GroupFit
    validation: Holdout | None = None  # None: not asked for
    sensitivity: tuple[Variant, ...] | None = None

    def summary(self) -> str:
        """Return the fit as plain text."""
        size = f"{self.group.runs} points at {len(self.group.budgets_flops)} budgets"
        lines = [
            f"{size} (table {self.points_digest})",
            self.group.summary(),
        ]
        if self.validation is not None:
            lines += ["", self.validation.summary()]
        if self.sensitivity is not None:
            lines += ["", variants_summary(self.sensitivity)]
        return "\n".join(lines)

    def headlines(self) -> list[str]:
        """Return the laws, or the refusals with their reasons, one line per quantity."""
        return [
            f"Optimal {QUANTITY_NAMES[quantity]}: {self.group.headline(quantity)}"
            for quantity in self.group.quantities
        ]

    def predict(
        self, flops: float | np.ndarray[Any, Any], estimator: str = DEFAULT_ESTIMATOR
    ) -> pd.DataFrame:
        """Return optimal parameters and tokens at budgets of `flops`, and L* there (see `GroupFit.predict`).

        The column loss is in the table's unit.
        """
        optima = self.group.predict(flops, estimator)
        return optima.rename(columns=lambda name: name.replace("_nats", ""))

    def to_dict(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the fit as JSON text, the same bytes for the same points and seed."""
        return serialize.to_json(self)


def read_points(path: Path | str, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a CSV and rename its columns.

    Parameters
    ----------
    columns : the file's column for each of compute, x, loss and block.

    Raises
    ------
    TableError : the file is absent, lacks a mapped column, or holds a value that is not a number.
    """
    points = read_source(str(path), {"loss": "loss"} | dict(columns or {}))
    assert isinstance(points, pd.DataFrame)
    return points


def isoflop(points: pd.DataFrame, *, x: Swept = "params", config: FitConfig | None = None) -> IsoflopFit:
    """Fit all isoFLOP estimators to a table of points.

    Parameters
    ----------
    points : columns compute (FLOPs), x and loss; `block` labels points that share their noise
        (resampling=block).
    x : what the column x holds.

    Raises
    ------
    TableError : a column is missing, a value is not positive and finite, or budgets hold one point each.
    """
    config = config or FitConfig()
    table = _checked(points)
    group = _group(table, x, config)
    fitted = IsoflopFit(config=config, points_digest=digest(table), group=group)
    if not config.validation:
        return fitted

    def refit(other: FitConfig, without: tuple[str, ...]) -> tuple[GroupFit, ...]:
        kept = [str(i) not in without for i in range(len(table))]
        return (_group(table[kept].reset_index(drop=True), x, other),)

    return replace(
        fitted,
        validation=holdout((group,), config),
        sensitivity=sensitivity((group,), refit, config, counts=False),
    )


def fit_law_to_points(
    law: str, points: pd.DataFrame, *, x: Swept = "params", config: FitConfig | None = None
) -> LawFit:
    """Fit one law of the registry to points that have its columns and a loss (in nats).

    Columns that follow from the others by C = 6 N D are filled in.

    Raises
    ------
    TableError : the law is unknown, or a column is missing.
    """
    config = config or FitConfig()
    as_law(law)
    if "loss" not in points:
        raise TableError("columns.loss is not set, and the table has no column loss")
    how = "pairs" if config.resampling == "noise" else config.resampling
    label = {"stratified": "compute", "block": "block"}.get(how)
    if label is not None and label not in points:
        raise TableError(f"resampling={how} needs columns.{label}")
    return fit_law(
        law,
        implied(points, x),
        points["loss"].to_numpy(float),
        delta=config.huber_delta,
        bootstrap=config.bootstrap,
        resampling=how,
        labels=None if label is None else points[label].to_numpy(),
        seed=config.seed,
        confidence=config.confidence,
    )


def implied(points: pd.DataFrame, x: Swept) -> pd.DataFrame:
    """Return points with what C = 6 N D gives of compute, params, tokens, flops and tokens_per_param."""
    known = {str(name): points[name] for name in points}
    if "x" in known:
        known.setdefault(x, known["x"].astype(float))
    related: dict[str, Any] = {
        name: known[name].astype(float) for name in ("compute", "params", "tokens") if name in known
    }
    if set(related) == {"params", "tokens"}:
        related["compute"] = 6 * related["params"] * related["tokens"]
    elif len(related) == 2:
        missing, other = ("tokens", "params") if "params" in related else ("params", "tokens")
        related[missing] = related["compute"] / 6 / related[other]
    if "compute" in related:
        known.setdefault("flops", related["compute"])
    if "params" in related and "tokens" in related:
        known.setdefault("tokens_per_param", related["tokens"] / related["params"])
    return pd.DataFrame({**known, **related})


def _checked(points: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in COLUMNS if name not in points]
    if missing:
        present = ", ".join(map(str, points.columns))
        named = " ".join(f"columns.{name}=NAME" for name in missing)
        raise TableError(f"points need {', '.join(missing)}: say {named} (the table has {present})")
    table = points[list(COLUMNS)].astype(float)
    wrong = ~(np.isfinite(table) & (table > 0)).all(axis=1)
    if wrong.any():
        row = table[wrong].iloc[0].to_dict()
        raise TableError(f"compute, x and loss must be positive and finite: a row holds {row}")
    table["block"] = points["block"].astype(str) if "block" in points else ""
    return table.sort_values([*COLUMNS, "block"]).reset_index(drop=True)


def _group(table: pd.DataFrame, x: Swept, config: FitConfig) -> GroupFit:
    compute, swept, losses = (table[name].to_numpy(float) for name in COLUMNS)
    flops, index = _budgets(compute)
    if len(flops) > len(table) / 2:
        count = f"{len(flops)} budgets for {len(table)} points"
        raise TableError(f"{count} make no isoFLOP curves: fit the surface law instead (law=surface)")
    params = swept if x == "params" else compute / 6 / swept
    tokens, rows = compute / 6 / params, np.arange(len(table))
    cells = Curves(
        variable="params",
        budgets_flops=flops,
        budget=index,
        rows=rows,
        values=params,
        tokens=tokens,
        params=params,
        loss_nats=losses,
    )
    drawn = draws(config.bootstrap, len(table), config.seed, "points")
    names = rows.astype(str)
    blocks = np.where(table["block"] == "", names, table["block"].astype(str))
    inputs = Inputs(
        cells=cells,
        runs=Points(rows=rows, params=params, tokens=tokens, loss_nats=losses),
        shape=PLAIN_TRANSFORMER,
        draws=resample(drawn, config.resampling, index, blocks, "points", config.seed),
        floor=NoiseFloor(sd_nats=None, degrees_of_freedom=0),
        config=config,
        run_ids=names,
    )
    columns = {"target_flops": flops[index], "params": params, "tokens": tokens, "val_loss_nats": losses}
    frame = pd.DataFrame({"run_id": names, "kind": "looped", **columns})
    return fit_group("points", ("", "6 N D"), frame, inputs)


def _budgets(compute: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the distinct budgets (medians) and the index of each point's; `compute` ascends."""
    index = np.concatenate([[0], np.cumsum(np.diff(np.log(compute)) > SAME_BUDGET)])
    return np.array([np.median(compute[index == k]) for k in range(index[-1] + 1)]), index
