"""The envelope over an axis of the recipe: the best value at every cell, and the law of the least loss.

The least of several noisy losses lies low. Its expected shortfall is added back to the cell, and the
envelope's runs then enter the same estimators as those of any other group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.config import FitConfig
from analysis.format import number
from analysis.isoflop.exponents import IsoflopResult
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.stats.noise import NoiseFloor
from analysis.study.cross_run_laws import CrossRunLaw, iso_depth_laws
from analysis.study.least_losses import Cell, at_edge, compared_cells, noise_of_runs
from analysis.tables.arms import CELL_COLUMNS, Value, axes, axis_values, name_of, without_axis
from analysis.tables.schema import TableError
from analysis.tables.selection import groups


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


@dataclass(frozen=True, kw_only=True, repr=False)
class Envelope(IsoflopResult):
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

    def at_level(self, level: float) -> Envelope:
        """Return the envelope with the intervals of its isoFLOP laws at another level of confidence."""
        return replace(self, groups=tuple(group.at_level(level) for group in self.groups))

    def fitted_groups(self) -> tuple[GroupFit, ...]:
        """Return the groups of the least losses."""
        return self.groups

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
    sd, freedom, source = noise_of_runs(arms, floor)
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
        for cell in compared_cells(frame, CELL_COLUMNS, sd or 0.0):
            arms = [tried[arm] for arm in cell.means.index]
            if len(arms) > 1:
                best.append(_best_value(label, names, arms, cell, (sd, freedom), confidence))
            rows = cell.rows.drop(columns="arm")
            kept.append(rows.assign(val_loss_nats=rows["val_loss_nats"] + cell.shortfall))
    return tuple(best), pd.concat(kept).sort_values("run_id", kind="stable").reset_index(drop=True)


def _best_value(
    label: str,
    names: Sequence[str],
    tried: Sequence[tuple[Value, ...]],
    cell: Cell,
    noise: tuple[float | None, int],
    confidence: float,
) -> BestValue:
    best = tried[int(cell.means["nats"].argmin())]
    first = cell.rows.iloc[0]
    return BestValue(
        group=label,
        kind=str(first["kind"]),
        mean_recurrence=float(first["mean_recurrence"]),
        budget_flops=float(first["target_flops"]),
        values=len(tried),
        best=", ".join(name_of(name, value) for name, value in zip(names, best, strict=True)),
        within_noise=cell.within_noise(*noise, confidence),
        at_edge=at_edge(tried, best),
        loss_nats=float(cell.means["nats"].min()) + cell.shortfall,
        shortfall_nats=cell.shortfall,
    )
