"""The envelope over an axis of the recipe: the best value at every cell, and the law of the least loss.

The least of several noisy losses lies low. Its expected shortfall is added back to the cell, and the
envelope's runs then enter the same estimators as those of any other group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.config import Array, FitConfig
from analysis.format import number
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.stats.noise import NoiseFloor
from analysis.study.cross_run_laws import CrossRunLaw, iso_depth_laws
from analysis.tables.arms import CELL_COLUMNS, Value, axes, axis_values, name_of, without_axis
from analysis.tables.schema import TableError
from analysis.tables.selection import groups

RESAMPLES = 4000  # standard normal errors behind the shortfall of a minimum


@dataclass(frozen=True, kw_only=True)
class BestValue:
    """The value of the axis with the least loss at one cell; losses are means over seeds."""

    group: str
    kind: str
    mean_recurrence: float
    budget_flops: float
    values: int  # trained at this cell
    best: str
    within_noise: int  # values, the best among them, that the noise does not tell from it; 0: unknown
    at_edge: bool  # least or greatest of three or more numbers: a better value may lie outside
    loss_nats: float
    shortfall_nats: float  # by which the least of noisy losses is expected to lie low

    def short(self) -> str:
        """Return the best value with its marks: ~ tied within noise, ! at the end of the axis."""
        values = "/".join(part.split("=", 1)[1] for part in self.best.split(", "))
        return f"{values}{'~' * (self.within_noise > 1)}{'!' * self.at_edge}"


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The least loss over one or several axes at every cell, and its isoFLOP laws; or why there is none."""

    axes: tuple[str, ...]
    noise_nats: float | None
    noise_source: str
    cells: tuple[BestValue, ...]  # with two or more values
    groups: tuple[GroupFit, ...] = ()
    run_laws: tuple[CrossRunLaw, ...] = ()  # the iso-depth law
    notes: tuple[str, ...] = ()
    refusal: str | None = None

    @property
    def title(self) -> str:
        """Return the axes in words."""
        return " and ".join(self.axes)

    def summary(self) -> str:
        """Return the best values and the laws as plain text."""
        lines = [f"Envelope over {self.title}: the least loss at each cell, selection allowed for"]
        for label, rows in self.best_values().items():
            lines.append(f"  {label}, best value (~ tied within noise, ! at the end of the axis)")
            for budget, row in rows.iterrows():
                shown = ", ".join(f"{cell} {value}" for cell, value in row.items() if value)
                lines.append(f"    {number(float(str(budget)))} FLOPs: {shown}")
        if self.refusal:
            return "\n".join([*lines, f"  no law: {self.refusal}"])
        raised = [cell.shortfall_nats for cell in self.cells]
        lines.append(
            f"  losses are raised by {min(raised):.4f} to {max(raised):.4f} nats, as the least of noisy "
            f"losses lies low (noise {self.noise_nats:.4f} nats from {self.noise_source})"
        )
        lines += [f"  {note}" for note in self.notes]
        for group in self.groups:
            lines += [f"  {group.label}, envelope", group.summary()]
        lines += [f"  envelope, {law.summary()}" for law in self.run_laws]
        return "\n".join(lines)

    def best_values(self) -> dict[str, pd.DataFrame]:
        """Return the best value by budget and cell, one frame per group of runs; empty where not tried."""
        rows = [
            (
                cell.group,
                cell.budget_flops,
                f"µ = {cell.mean_recurrence:g}" if cell.kind == "looped" else cell.kind,
                cell.short(),
            )
            for cell in self.cells
        ]
        table = pd.DataFrame(rows, columns=["group", "budget_flops", "cell", "best"])
        return {
            str(label): frame.pivot_table(
                index="budget_flops", columns="cell", values="best", aggfunc="first"
            )[list(dict.fromkeys(frame["cell"]))].fillna("")
            for label, frame in table.groupby("group", sort=False)
        }

    def headlines(self) -> list[str]:
        """Return the envelope's laws, one line per group and quantity."""
        if self.refusal:
            return [f"Envelope over {self.title}: no law, {self.refusal}"]
        return [
            f"Envelope over {self.title}, {group.label}: {group.headline(quantity)}"
            for group in self.groups
            for quantity in group.quantities[:1]
        ]


def envelopes(
    runs: pd.DataFrame, arms: Sequence[GroupFit], floor: NoiseFloor, config: FitConfig
) -> tuple[Envelope, ...]:
    """Return the envelopes over the axes along which cells were trained more than once.

    Numbers, such as learning rates, are tuned together: one envelope over all of them. A choice, such as the
    injection, is an axis of its own, each of its values at the best numbers.

    Parameters
    ----------
    runs : selected runs.
    arms : their isoFLOP laws, one group per recipe; without replicate seeds their residuals are the noise.
    """
    varied = axes(runs)
    numbers = [name for name in varied if name in runs and pd.api.types.is_numeric_dtype(runs[name])]
    choices = [[*numbers, name] for name in varied if name not in numbers]
    return tuple(
        envelope(runs, names, arms, floor, config) for names in ([numbers] if numbers else []) + choices
    )


def envelope(
    runs: pd.DataFrame,
    names: Sequence[str],
    arms: Sequence[GroupFit],
    floor: NoiseFloor,
    config: FitConfig,
) -> Envelope:
    """Return the envelope over some axes together (see `envelopes`)."""
    sd, freedom, source = _noise(arms, floor)
    cells, least = least_losses(runs, names, sd, freedom, config.confidence)
    base = Envelope(axes=tuple(names), noise_nats=sd, noise_source=source, cells=cells)
    if sd is None:
        reason = "the least of noisy losses lies low by an unknown amount: train a cell with two seeds"
        return replace(base, refusal=reason)
    try:
        fitted, skipped = fit_groups(least, floor, config)
    except TableError as error:
        return replace(base, refusal=f"the arms cannot share a law: {error}")
    return replace(base, groups=fitted, run_laws=iso_depth_laws(fitted, config), notes=skipped)


def least_losses(
    runs: pd.DataFrame, names: Sequence[str], sd: float | None, freedom: int, confidence: float = 0.95
) -> tuple[tuple[BestValue, ...], pd.DataFrame]:
    """Return the best value of every cell with two or more, and the runs of the best arm of every cell.

    Parameters
    ----------
    sd, freedom : noise of a run in nats and its degrees of freedom. With None no loss is raised.
    """
    neutral, values = runs, []
    for name in names:
        values.append(axis_values(runs, name))
        neutral = without_axis(neutral, name)
    tuples: list[tuple[Value, ...]] = list(zip(*values, strict=True))
    tried = sorted(set(tuples), key=str)
    neutral = neutral.assign(arm=[tried.index(one) for one in tuples])
    kept, best = [], []
    for label, frame in groups(neutral):
        for cell in _compare(frame, sd or 0.0):
            arms = [tried[arm] for arm in cell.means.index]
            if len(arms) > 1:
                best.append(_best_value(label, names, arms, cell, (sd, freedom), confidence))
            rows = cell.rows.drop(columns="arm")
            kept.append(rows.assign(val_loss_nats=rows["val_loss_nats"] + cell.shortfall))
    return tuple(best), pd.concat(kept).sort_values("run_id", kind="stable").reset_index(drop=True)


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One cell: its arms with mean losses, the runs of the best one and the shortfall of its loss."""

    means: pd.DataFrame  # by arm: nats and seeds
    rows: pd.DataFrame
    shortfall: float


def _compare(frame: pd.DataFrame, sd: float) -> list[_Cell]:
    """Return the cells of one group. `frame` has the column arm."""
    split = [cell for _, cell in frame.groupby(list(CELL_COLUMNS), sort=True)]
    named = {"nats": ("val_loss_nats", "mean"), "seeds": ("seed", "size")}
    means = [cell.groupby("arm", sort=True).agg(**named) for cell in split]
    share, cells = true_share(means, sd), []
    for cell, table in zip(split, means, strict=True):
        nats, errors = table["nats"].to_numpy(float), sd / np.sqrt(table["seeds"].to_numpy(float))
        rows = cell[cell["arm"] == table.index[int(nats.argmin())]]
        cells.append(_Cell(means=table, rows=rows, shortfall=shortfall(nats, errors, share)))
    return cells


def true_share(means: Sequence[pd.DataFrame], sd: float) -> float:
    """Return the share of the scatter between the arms of a cell that is not noise, pooled over cells."""
    squares = noise = 0.0
    for table in means:
        nats, count = table["nats"].to_numpy(float), len(table)
        squares += float(np.square(nats - nats.mean()).sum())
        noise += sd**2 * (count - 1) * float((1 / table["seeds"].to_numpy(float)).mean())
    return max(0.0, 1 - noise / squares) if squares else 0.0


def shortfall(nats: Array, errors: Array, share: float) -> float:
    """Return by how much the least of noisy losses is expected to lie below the least true one.

    Parameters
    ----------
    nats : losses of the arms of one cell [arms].
    errors : their standard errors [arms].
    share : of their scatter that is true (see `true_share`).

    Notes
    -----
    The bias of the minimum in a parametric bootstrap about the losses, which are first drawn towards their
    mean by the root of `share`: losses as seen scatter more than true ones, and a bootstrap about them would
    find two thirds of the bias of equal arms.
    """
    if len(nats) < 2:
        return 0.0
    centre = nats.mean() + np.sqrt(share) * (nats - nats.mean())
    noise = np.random.default_rng(0).standard_normal((RESAMPLES, len(nats)))
    drawn = np.concatenate([centre + errors * noise, centre - errors * noise])  # of mean zero
    return max(0.0, float(centre.min() - drawn.min(axis=1).mean()))


def _best_value(
    label: str,
    names: Sequence[str],
    tried: Sequence[tuple[Value, ...]],
    cell: _Cell,
    noise: tuple[float | None, int],
    confidence: float,
) -> BestValue:
    sd, freedom = noise
    gap = (cell.means["nats"] - cell.means["nats"].min()).to_numpy(float)
    seeds = cell.means["seeds"].to_numpy(float)
    own = seeds[int(gap.argmin())]
    within = 0
    if sd is not None:
        limit = float(stdtrit(freedom, (1 + confidence) / 2)) * sd * np.sqrt(1 / seeds + 1 / own)
        within = int((gap <= limit).sum())
    best = tried[int(gap.argmin())]
    edge = any(
        len(set(column)) > 2 and not isinstance(value, str) and value in (min(column), max(column))
        for column, value in zip(zip(*tried, strict=True), best, strict=True)
    )
    first = cell.rows.iloc[0]
    return BestValue(
        group=label,
        kind=str(first["kind"]),
        mean_recurrence=float(first["mean_recurrence"]),
        budget_flops=float(first["target_flops"]),
        values=len(gap),
        best=", ".join(name_of(name, value) for name, value in zip(names, best, strict=True)),
        within_noise=within,
        at_edge=edge,
        loss_nats=float(cell.means["nats"].min()) + cell.shortfall,
        shortfall_nats=cell.shortfall,
    )


def _noise(arms: Sequence[GroupFit], floor: NoiseFloor) -> tuple[float | None, int, str]:
    """Return the noise of a run with its degrees of freedom and source."""
    if floor.sd_nats is not None:
        return floor.sd_nats, floor.degrees_of_freedom, "replicate seeds"
    levels = [level for fit in arms if (level := fit.estimator().noise) is not None]
    freedom = sum(level.degrees_of_freedom for level in levels)
    if not freedom:
        return None, 0, "unknown"
    squares = sum(level.degrees_of_freedom * level.sd_nats**2 for level in levels)
    return float(np.sqrt(squares / freedom)), freedom, "residuals of the arms' curves"
