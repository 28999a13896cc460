"""isoFLOP laws of anybody's table: a CSV or DataFrame with a budget, one swept variable and a loss.

    fit = isoflop(read_points("points.csv", {"compute": "flops", "x": "params", "loss": "val_loss"}))
    fit.summary(); fit.predict(1e22); fit.to_json(); fit.plot(ax=ax)

FLOPs are counted as C = 6 N D, so that the swept variable may be parameters or tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis import plain, words
from analysis.config import FitConfig
from analysis.estimator import DEFAULT, Inputs, Points
from analysis.geometry import SIZES
from analysis.group import GroupFit, fit_group
from analysis.isoflop import Curves
from analysis.noise import NoiseFloor
from analysis.resample import draws
from analysis.schema import TableError
from analysis.tables import digest

COLUMNS = ("compute", "x", "loss")
SAME_BUDGET = 0.01  # budgets whose logs differ by less are one: digitised tables jitter


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """The laws of one table of points; loss may be in any unit, and is reported in the table's own."""

    config: FitConfig
    points_digest: str
    group: GroupFit = field(repr=False)

    def summary(self) -> str:
        """Return the fit as plain text."""
        size = f"{self.group.runs} points at {len(self.group.budgets_flops)} budgets"
        head = f"{size} (table {self.points_digest})"
        return "\n".join([head, *words.estimators(self.group, self.config.confidence)])

    def predict(self, flops: float | np.ndarray[Any, Any], estimator: str = DEFAULT) -> pd.DataFrame:
        """Return the optimal parameters and tokens at budgets of `flops` by one estimator's power laws."""
        budgets = np.atleast_1d(np.asarray(flops, float))
        laws = self.group.estimator(estimator).laws
        return pd.DataFrame(
            {"flops": budgets, **{str(name): law.predict(budgets) for name, law in laws.items()}}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return dict(plain.plain(self))

    def to_json(self) -> str:
        """Return the fit as JSON text, the same bytes for the same points and seed."""
        return plain.to_json(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the isoFLOP curves on a matplotlib axis and return it."""
        from analysis.figure_isoflop import plot_isoflop

        return plot_isoflop(self.group, "params", ax)


def read_points(path: Path | str, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a CSV and rename its columns; `columns` maps this room's names onto those of the file.

    Raises TableError for an absent file, a mapped column that the file does not have or a value that is no
    number.
    """
    path = Path(path)
    if not path.is_file():
        raise TableError(f"no table at {path}")
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise TableError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    wanted = {name: name for name in COLUMNS if name in frame} | dict(columns or {})
    for name, source in wanted.items():
        if source not in frame:
            near = difflib.get_close_matches(source, list(frame.columns), n=1)
            listed = ", ".join(map(str, frame.columns))
            hint = f"did you mean {near[0]}?" if near else f"it has {listed}"
            raise TableError(f"columns.{name}={source}: {path.name} has no such column ({hint})")
    picked = pd.DataFrame({name: frame[source] for name, source in wanted.items()})
    for name, source in wanted.items():
        wrong = pd.to_numeric(picked[name], errors="coerce").isna()
        if name in COLUMNS and wrong.any():
            value = picked[name][wrong].iloc[0]
            raise TableError(f"column {source} of {path.name} holds {value!r}: it must be a number")
    return picked


def isoflop(
    points: pd.DataFrame, *, x: Literal["params", "tokens"] = "params", config: FitConfig | None = None
) -> IsoflopFit:
    """Fit all isoFLOP estimators to points with columns compute (FLOPs), x (`params` or `tokens`) and
    loss.

    Raises TableError for a missing column, a value that is not positive and finite, or budgets that hold
    one point each.
    """
    config = config or FitConfig()
    missing = [name for name in COLUMNS if name not in points]
    if missing:
        raise TableError(f"points need the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    table = points[list(COLUMNS)].astype(float).sort_values(list(COLUMNS)).reset_index(drop=True)
    values = table.to_numpy(float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise TableError("compute, x and loss must be positive and finite")
    compute, swept, losses = values.T
    flops, index = _budgets(compute)
    if len(flops) > len(table) / 2:
        count = f"{len(flops)} budgets for {len(table)} points"
        raise TableError(f"{count} make no isoFLOP curves: fit the surface law instead")
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
    inputs = Inputs(
        cells=cells,
        runs=Points(rows=rows, params=params, tokens=tokens, loss_nats=losses),
        shape=SIZES,
        draws=draws(config.bootstrap, len(table), config.seed, "points"),
        floor=NoiseFloor(sd_nats=None, degrees_of_freedom=0),
        config=config,
    )
    columns = {"target_flops": flops[index], "params": params, "tokens": tokens, "val_loss_nats": losses}
    group = fit_group("points", ("", "6 N D"), pd.DataFrame({"kind": "looped", **columns}), inputs)
    return IsoflopFit(config=config, points_digest=digest(table), group=group)


def _budgets(compute: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the distinct budgets (medians) and the index of each point's; `compute` ascends."""
    index = np.concatenate([[0], np.cumsum(np.diff(np.log(compute)) > SAME_BUDGET)])
    return np.array([np.median(compute[index == k]) for k in range(index[-1] + 1)]), index
