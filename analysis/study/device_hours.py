"""Laws at equal device-hours: looped FLOPs and hours differ, and so may the best recurrence.

isoFLOP groups are not groups of equal hours, so no curve can be fitted per budget. The surface of the loss
in N and D does not know what a run costs: its minimum is searched along D = H / h(µ), with device-seconds per
token h(µ) = a + b µ fitted to the recorded seconds of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis import serialize
from analysis.config import Array, FitConfig
from analysis.format import number, percent, span
from analysis.isoflop.curves import SYMBOLS, Optimum, Quantity
from analysis.isoflop.geometry import Geometry
from analysis.isoflop.group import GroupFit, fit_groups
from analysis.isoflop.power_law import PowerLaw
from analysis.isoflop.surface_estimator import fit_parametric
from analysis.stats.noise import noise_floor
from analysis.tables.selection import LeftOut, digest, select

HOUR = 3600.0
LARGE_SCATTER, MAX_SCATTER = 0.1, 0.25  # of the seconds: a remark is made, the law is refused


@dataclass(frozen=True, kw_only=True)
class RunSeconds:
    """Device-seconds of a run: overhead + tokens (fixed + per_loop µ), fitted by relative least squares."""

    overhead_s: float
    fixed_s_per_token: float
    per_loop_s_per_token: float
    scatter: float  # relative standard deviation of the runs about it
    runs: int
    device: str

    def per_token(self, mean_recurrence: Array | float) -> Array:
        """Return device-seconds per token."""
        return self.fixed_s_per_token + self.per_loop_s_per_token * np.asarray(mean_recurrence, float)

    def summary(self) -> str:
        """Return the function with its scatter."""
        return (
            f"{number(self.overhead_s)} s + tokens x ({number(1e6 * self.fixed_s_per_token)} + "
            f"{number(1e6 * self.per_loop_s_per_token)} µ) µs on {self.device}, from {self.runs} runs that "
            f"scatter by {percent(self.scatter, 1)} about it"
        )


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

    def lines(self, symbol: str) -> list[str]:
        """Return the law and its optima as lines."""
        law = f"refused: {self.refusal}"
        if self.exponent is not None:
            ends = span(self.exponent_low, self.exponent_high)
            base = f"{number(self.coefficient)} (H / {number(self.reference_hours)} h)"
            law = f"{base}^{self.exponent:.3f} {ends}"
        optima = (f"    {number(one.hours)} h: {symbol} {one.summary()}" for one in self.optima)
        return [
            f"  {symbol} = {law}",
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

    def summary(self) -> str:
        """Return the group's laws as text."""
        if self.refusal or not self.seconds:
            return f"{self.label}: refused: {self.refusal}"
        lines = [f"{self.label}, at equal device-hours", f"  seconds of a run: {self.seconds.summary()}"]
        for quantity, law in self.laws.items():
            lines += law.lines(SYMBOLS[quantity])
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class DeviceHoursFit:
    """The laws of a study with device-hours in place of FLOPs as the budget."""

    config: FitConfig
    runs_digest: str
    groups: tuple[HoursGroup, ...]
    skipped: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def summary(self) -> str:
        """Return the laws as plain text."""
        lines = [
            "Laws over device-hours of training (without the overhead of a run), by the surface alone: "
            "groups of equal FLOPs are not of equal hours",
            *(group.summary() for group in self.groups),
            *(f"skipped: {text}" for text in self.skipped),
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the fit as JSON text, the same bytes for the same table and seed."""
        return serialize.to_json(self)


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
        groups=tuple(_group(group) for group in fitted),
        skipped=skipped,
        left_out=selection.left_out,
    )


def _group(group: GroupFit) -> HoursGroup:
    """Return the laws of one group along its curves of equal hours."""
    found = run_seconds(group.table)
    if isinstance(found, str):
        return HoursGroup(label=group.label, refusal=found)
    if found.scatter > MAX_SCATTER:
        reason = (
            f"runs scatter by {percent(found.scatter)} about {found.summary().split(', from')[0]}, more than "
            f"{percent(MAX_SCATTER)}: the machine was shared, or runs differ in more than tokens and loops"
        )
        return HoursGroup(label=group.label, seconds=found, refusal=reason)
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
        refusal=fit.refusal,
        notes=(note,) if found.scatter > LARGE_SCATTER else (),
        laws={
            quantity: _law(
                fit.laws[quantity], fit.optima[quantity], group.estimator("surface").laws[quantity]
            )
            for quantity in fit.laws
        },
    )


def run_seconds(runs: pd.DataFrame) -> RunSeconds | str:
    """Return device-seconds as a function of tokens and recurrence, or why the runs do not give it.

    The tokens are those that a run trained itself: steps taken over from a trunk cost it nothing.
    """
    from scipy.optimize import nnls

    used = runs[runs["kind"].isin(["looped", "fixed"])]
    seconds = used["device_s"].astype(float)
    seconds = seconds.where(seconds.notna(), used["wall_s"].astype(float) * used["devices"].astype(float))
    missing = ~(np.isfinite(seconds) & (seconds > 0))
    if missing.any():
        first = used["run_id"][missing].iloc[0]
        return f"the seconds of {int(missing.sum())} of {len(used)} runs are missing ({first} is the first)"
    kinds = sorted(
        {
            f"{device} ({kernels or 'kernels unknown'})"
            for device, kernels in zip(used["device"].astype(str), used["kernels"].astype(str), strict=True)
        }
    )
    if len(kinds) > 1:
        return (
            f"seconds were measured on {len(kinds)} kinds of device: {', '.join(kinds)}; keep one with where="
        )
    depth = used["mean_recurrence"].to_numpy(float)
    own = used["tokens"].to_numpy(float) * (
        1 - (used["trunk_steps"] / used["steps"]).fillna(0).to_numpy(float)
    )
    if len(used) < 4 or len(np.unique(depth)) < 2:
        return f"{len(used)} runs at {len(np.unique(depth))} recurrences do not give seconds per loop"
    design = np.stack([np.ones_like(own), own, own * depth], 1) / seconds.to_numpy(float)[:, None]
    scale = design.mean(0)
    best = nnls(design / scale, np.ones(len(own)))[0] / scale
    if best[2] <= 0:
        return "the seconds do not grow with the recurrence"
    residual = 1 - design @ best
    return RunSeconds(
        overhead_s=float(best[0]),
        fixed_s_per_token=float(best[1]),
        per_loop_s_per_token=float(best[2]),
        scatter=float(np.sqrt(residual @ residual / (len(own) - 3))),
        runs=len(used),
        device=kinds[0],
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
    )
