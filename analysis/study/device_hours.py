"""Laws at equal device-hours: looped FLOPs and hours differ, and so may the best recurrence.

isoFLOP groups are not groups of equal hours, so no curve can be fitted per budget. The surface of the loss
in N and D does not know what a run costs: its minimum is searched along D = H / h(µ), with device-seconds per
token h(µ) = a + b µ fitted to the recorded seconds of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.config import Array, FitConfig
from analysis.format import number, percent, span
from analysis.isoflop.curves import QUANTITY_NAMES, SYMBOLS, Optimum, Quantity
from analysis.isoflop.exponents import independent_groups
from analysis.isoflop.geometry import Geometry
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.isoflop.power_law import PowerLaw
from analysis.isoflop.surface_estimator import fit_parametric
from analysis.serialize import HIDDEN, Result, estimates_frame
from analysis.stats.noise import noise_floor
from analysis.study.run_seconds import RunSeconds, run_seconds, timed_runs
from analysis.tables.schema import TableError
from analysis.tables.selection import LeftOut, digest, select

HOUR = 3600.0
LARGE_SCATTER, MAX_SCATTER = 0.1, 0.25  # of the seconds: a remark is made, the law is refused


@dataclass(frozen=True, kw_only=True)
class HoursOptimum:
    """The optimum at one budget of device-hours, or why it is refused."""

    hours: float
    value: float | None
    low: float | None
    high: float | None
    refusal: str | None

    def summary(self) -> str:
        """Return the optimum with its interval, or the refusal."""
        if self.refusal:
            return f"refused: {self.refusal}"
        return f"= {number(self.value)} {span(self.low, self.high)}"


@dataclass(frozen=True, kw_only=True)
class HoursLaw:
    """value = coefficient (H / reference)^exponent with the optima behind it, or why there is none."""

    exponent: float | None
    exponent_low: float | None
    exponent_high: float | None
    coefficient: float | None
    reference_hours: float | None
    refusal: str | None
    optima: tuple[HoursOptimum, ...]
    isoflop_exponent: str  # of the same surface at equal FLOPs, as text
    draws: Array = field(repr=False, compare=False, metadata=HIDDEN)  # of `PowerLaw`

    def summary(self) -> str:
        """Return the law with the interval of its exponent, or the refusal."""
        if self.exponent is None:
            return f"refused: {self.refusal}"
        base = f"{number(self.coefficient)} (H / {number(self.reference_hours)} h)"
        return f"{base}^{self.exponent:.3f} {span(self.exponent_low, self.exponent_high)}"

    def predict(self, hours: Array) -> Array:
        """Return the law's value at budgets of device-hours."""
        if self.exponent is None or self.coefficient is None or self.reference_hours is None:
            raise ValueError(f"no power law over device-hours: {self.refusal}")
        return np.asarray(self.coefficient * (hours / self.reference_hours) ** self.exponent)

    def lines(self, symbol: str) -> list[str]:
        """Return the law and its optima as lines."""
        optima = (f"    {number(one.hours)} h: {symbol} {one.summary()}" for one in self.optima)
        return [
            f"  {symbol} = {self.summary()}",
            f"    at equal FLOPs by this surface: {self.isoflop_exponent}",
            *optima,
        ]


@dataclass(frozen=True, kw_only=True)
class HoursGroup:
    """The laws of one group over device-hours by the surface, or the reason why there are none."""

    label: str
    seconds: RunSeconds | None = None
    refusal: str | None = None
    notes: tuple[str, ...] = ()
    laws: dict[Quantity, HoursLaw] = field(default_factory=dict)
    timed: pd.DataFrame = field(  # of `timed_runs`
        default_factory=pd.DataFrame, repr=False, compare=False, metadata=HIDDEN
    )
    resid: pd.Series = field(  # loss minus the surface by run
        default_factory=lambda: pd.Series(dtype=float), repr=False, compare=False, metadata=HIDDEN
    )

    def summary(self) -> str:
        """Return the group's laws as text."""
        if self.refusal or not self.seconds:
            return f"{self.label}: refused: {self.refusal}"
        lines = [f"{self.label}, at equal device-hours", f"  seconds of a run: {self.seconds.summary()}"]
        for quantity, law in self.laws.items():
            lines += law.lines(SYMBOLS[quantity])
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True, repr=False)
class DeviceHoursFit(Result):
    """The laws of a study with device-hours in place of FLOPs as the budget."""

    config: FitConfig
    runs_digest: str
    runs_used: int
    groups: tuple[HoursGroup, ...]
    skipped: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    runs: pd.DataFrame = field(compare=False, metadata=HIDDEN)

    def to_frame(self) -> pd.DataFrame:
        """Return the exponents over hours by group and quantity: value, low, high and refusal."""
        rows = (
            (*key, law.exponent, law.exponent_low, law.exponent_high, law.refusal)
            for group in self.groups
            for quantity, law in group.laws.items()
            for key in [(group.label, str(quantity))]
        )
        return estimates_frame(("group", "quantity"), rows)

    def at_level(self, level: float) -> DeviceHoursFit:
        """Return the fit with its intervals at another level of confidence."""
        return fit_device_hours(self.runs, replace(self.config, confidence=level))

    @property
    def cov(self) -> pd.DataFrame:
        """Return the covariance of the exponents over the resamples; groups are independent."""
        drawn = {
            (group.label, str(quantity)): pd.Series(law.draws[:, 1])
            for group in self.groups
            for quantity, law in group.laws.items()
            if law.exponent is not None
        }
        return independent_groups(pd.DataFrame(drawn).cov())

    @property
    def resid(self) -> pd.Series:
        """Return loss minus the surface of every run on an isoFLOP curve, by group and run."""
        parts = {group.label: group.resid for group in self.groups if len(group.resid)}
        return (
            pd.concat(parts, names=["group", "run_id"]).rename("residual")
            if parts
            else pd.Series(dtype=float)
        )

    def summary(self) -> str:
        """Return the laws as plain text."""
        lines = [
            "Laws over device-hours of training (without the overhead of a run), by the surface alone: "
            "groups of equal FLOPs are not of equal hours",
            *(group.summary() for group in self.groups),
            *(f"skipped: {text}" for text in self.skipped),
        ]
        return "\n".join(lines)

    def headlines(self) -> list[str]:
        """Return the laws, or the refusals with their reasons, one line per group and quantity."""
        lines = []
        for group in self.groups:
            if group.refusal:
                lines.append(f"{group.label}: no law over device-hours, {group.refusal}")
                continue
            for quantity, law in group.laws.items():
                name = f"Optimal {QUANTITY_NAMES[quantity]} at equal device-hours"
                lines.append(f"{name}, {group.label}: {law.summary()}")
        return lines or [f"No law over device-hours: {'; '.join(self.skipped)}"]


def fit_device_hours(runs: pd.DataFrame, config: FitConfig | None = None) -> DeviceHoursFit:
    """Fit the optimal recurrence and tokens over device-hours.

    Parameters
    ----------
    runs : runs table (schema.RUNS) with the seconds of every run (device_s, or wall_s times devices).

    Raises
    ------
    TableError : the table is malformed or empty, or the runs have different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    fitted, skipped = fit_groups(selection.runs, noise_floor(selection.runs), config, (fit_parametric,))
    return DeviceHoursFit(
        config=config,
        runs_digest=digest(runs),
        runs_used=len(selection.runs),
        groups=tuple(_group(group) for group in fitted),
        skipped=skipped,
        left_out=selection.left_out,
        runs=runs,
    )


def _group(group: GroupFit) -> HoursGroup:
    """Return the laws of one group along its curves of equal hours."""
    try:
        timed = timed_runs(group.table)
        found = run_seconds(timed)
    except TableError as error:
        return HoursGroup(label=group.label, refusal=str(error))
    if found.scatter > MAX_SCATTER:
        reason = (
            f"runs scatter by {percent(found.scatter)} about {found.summary().split(', from')[0]}, more than "
            f"{percent(MAX_SCATTER)}: the machine was shared, or runs differ in more than tokens and loops"
        )
        return HoursGroup(label=group.label, seconds=found, refusal=reason, timed=timed)
    shape, cells = group.geometry, group.inputs.cells
    by_hour = Geometry(
        static_params=shape.static_params,
        looped_params=shape.looped_params,
        flops_fixed=found.fixed_s_per_token,
        flops_slope=found.per_loop_s_per_token,
        backprop_share=shape.backprop_share,
    )
    seconds = cells.tokens * found.per_token(cells.values)
    budgets = np.array([np.median(seconds[cells.budget == k]) for k in range(group.inputs.budgets)])
    inputs = replace(group.inputs, shape=by_hour, cells=replace(cells, budgets_flops=budgets))
    fit = fit_parametric(inputs)
    note = f"the seconds scatter by more than {percent(LARGE_SCATTER)}: was the machine shared?"
    return HoursGroup(
        label=group.label,
        seconds=found,
        timed=timed,
        refusal=fit.refusal,
        resid=pd.Series(
            cells.loss_nats - fit.across(cells.values, seconds)[0] if fit.across else [],
            index=inputs.run_ids[cells.rows] if fit.across else [],
            dtype=float,
        ),
        notes=(note,) if found.scatter > LARGE_SCATTER else (),
        laws={
            quantity: _law(
                fit.laws[quantity], fit.optima[quantity], group.estimator("surface").laws[quantity]
            )
            for quantity in fit.laws
        },
    )


def _law(law: PowerLaw, optima: tuple[Optimum, ...], isoflop: PowerLaw) -> HoursLaw:
    """Return a law over seconds as one over hours."""
    reference = law.reference_flops
    same = f"refused: {isoflop.refusal}"
    if isoflop.exponent is not None:
        same = f"exponent {isoflop.exponent:.3f} {span(isoflop.exponent_low, isoflop.exponent_high)}"
    return HoursLaw(
        exponent=law.exponent,
        exponent_low=law.exponent_low,
        exponent_high=law.exponent_high,
        coefficient=law.coefficient,
        reference_hours=None if reference is None else reference / HOUR,
        refusal=law.refusal,
        optima=tuple(
            HoursOptimum(
                hours=one.budget_flops / HOUR,
                value=one.value,
                low=one.low,
                high=one.high,
                refusal=one.refusal,
            )
            for one in optima
        ),
        isoflop_exponent=same,
        draws=law.draws,
    )
