"""Points of a table as isoFLOP curves: their budgets, FLOPs per token and noise, and the fit of a group.

Under C = 6 N D nothing about FLOPs needs to be fitted. Where a table has its own token counts, C / D is a
line in the size (embeddings or attention that one of both counts leaves out) or in the recurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.config import Array, FitConfig, Mask
from analysis.format import percent
from analysis.isoflop.curves import Curves, Quantity
from analysis.isoflop.estimator import Inputs, Points
from analysis.isoflop.geometry import FLOPS_PER_PARAM, PLAIN_TRANSFORMER, Geometry
from analysis.isoflop.group import GroupFit, fit_group
from analysis.stats.bootstrap import draws, resample
from analysis.stats.noise import NoiseFloor, ReplicateCell, pooled
from analysis.tables.budgets import Budgets, group_budgets
from analysis.tables.points import Axis, PointsTable
from analysis.tables.schema import TableError
from analysis.tables.selection import digest
from analysis.tables.settings import differing_losses, varied_setting

MIN_REPLICATES = 3  # degrees of freedom from which replicates measure the noise
MANY_POINTS = 2_000  # above, neighbours on a curve are averaged: every resample holds all points
AVERAGED, LEAST_PER_CURVE = 600, 8  # points after averaging, and those that a curve keeps
MOST_POINTS = 5_000  # after averaging
EQUAL = 1e-3  # C and 6 N D that differ by less are equal: tables round
SCATTER = 0.05  # about the line, above which D* is known no better than that
NO_LINE = 0.2  # the same, above which the points are no single family


@dataclass(frozen=True, kw_only=True)
class IsoflopPoints:
    """Usable points in the order of the fit, their budgets and the geometry of the swept variable."""

    frame: pd.DataFrame  # compute, params, tokens, loss, and recurrence where it is the axis
    axis: Axis
    budgets: Budgets
    shape: Geometry
    floor: NoiseFloor
    digest: str
    notes: tuple[str, ...] = field(default=())


def isoflop_points(used: PointsTable, axis: Axis, tolerance: float | None) -> IsoflopPoints:
    """Return usable points in a fixed order with their budgets, geometry and noise.

    Raises TableError where they make no isoFLOP curves, or too many.
    """
    swept = axis if axis in used.frame else "params"
    keep = [*dict.fromkeys(["compute", swept, "params", "tokens", "loss"])]
    keep += [name for name in ("budget", "block") if name in used.frame]
    frame = used.frame[keep].sort_values([name for name in keep if name != "budget"])
    labels = frame["budget"].to_numpy() if "budget" in frame else None
    budgets = group_budgets(frame["compute"].to_numpy(float), tolerance, labels)
    shape, notes = points_geometry(frame, axis)
    floor, more = _floor(used.frame.loc[frame.index], keep, swept, budgets)
    points = IsoflopPoints(
        frame=frame,
        axis=axis,
        budgets=budgets,
        shape=shape,
        floor=floor,
        digest=digest(_identity(frame, axis, shape)),
        notes=(*notes, *more),
    )
    return points if len(frame) <= MANY_POINTS else _averaged(points, swept)


def _averaged(points: IsoflopPoints, swept: str) -> IsoflopPoints:
    """Return means of neighbours on a curve, of logs and of losses, in equal numbers.

    A curve is straight over so short a piece, and means of equal numbers have equal noise.
    """
    frame, index = points.frame, points.budgets.index
    order = np.lexsort([frame[swept].to_numpy(float), index])
    sizes = np.bincount(index)
    pieces = np.clip(np.round(sizes * AVERAGED / len(frame)).astype(int), LEAST_PER_CURVE, sizes)
    if "block" in frame or pieces.sum() > MOST_POINTS:
        raise TableError(
            f"{len(frame)} points at {len(sizes)} budgets are more than isoFLOP curves are fitted to: take a "
            "part (where='index % 10 == 0'), join budgets (budget_tolerance=0.1) or fit law=surface"
        )
    place = np.concatenate(
        [np.arange(size) * count // size for size, count in zip(sizes, pieces, strict=True)]
    )
    curve = np.repeat(np.arange(len(sizes)), sizes)
    piece = place + np.repeat(np.cumsum(pieces) - pieces, sizes)
    ordered = frame.iloc[order]
    numbers = [name for name in frame if name != "budget"]
    logs = np.log(ordered[numbers].to_numpy(float))
    logs[:, numbers.index("loss")] = ordered["loss"]
    means = pd.DataFrame(logs, columns=numbers).groupby(piece, sort=True).mean()
    losses = means.pop("loss")
    first = np.unique(piece, return_index=True)[1]
    names = pd.Index([f"{name} and neighbours" for name in ordered.index[first]])
    mean = means.apply(np.exp).assign(loss=losses).set_axis(names)
    text = f"{len(frame)} points were averaged to {len(mean)} along their curves"
    return replace(
        points,
        frame=mean,
        budgets=replace(points.budgets, index=curve[first]),
        floor=NoiseFloor(sd_nats=None, degrees_of_freedom=0),
        notes=(*points.notes, text),
    )


def _floor(
    frame: pd.DataFrame, used: Sequence[str], swept: str, budgets: Budgets
) -> tuple[NoiseFloor, tuple[str, ...]]:
    """Return the noise of points with equal settings and other losses, where there are enough.

    Points that differ in another setting, a column of few values such as a learning rate, are no replicates:
    a note names it.

    Raises
    ------
    TableError : the losses differ with that setting, so that the points are not those of one law.
    """
    unknown = NoiseFloor(sd_nats=None, degrees_of_freedom=0)
    settings = [*dict.fromkeys(["compute", swept, "params", "tokens"])]
    cells = [budgets.index, frame[swept].to_numpy(float)]
    names = frame.columns.difference([*used, *settings, "seed", "x"]).tolist()
    if name := varied_setting(frame, cells, names):
        if found := differing_losses(frame, cells, name):
            raise TableError(
                f"points of equal compute and size differ in {found}, or take the least loss over it, "
                f"envelope={name}"
            )
        return unknown, (
            f"points of equal compute and size differ in {name}, their losses by no more than noise",
        )
    again = frame[frame.duplicated(settings, keep=False)]
    if again.empty:
        return unknown, ()
    floor = pooled(
        [
            ReplicateCell(
                label=f"{rows[swept].iloc[0]:g} at {rows['compute'].iloc[0]:g} FLOPs",
                mean_nats=float(rows["loss"].mean()),
                deviations_nats=tuple(float(value) for value in rows["loss"] - rows["loss"].mean()),
                run_ids=tuple(map(str, rows.index)),
            )
            for _, rows in again.groupby(settings, sort=True)
        ]
    )
    return (floor if floor.degrees_of_freedom >= MIN_REPLICATES else unknown), ()


def regrouped(budgets: Budgets, kept: Mask) -> Budgets:
    """Return the budgets of some of the points; one without a point is dropped."""
    used, index = np.unique(budgets.index[kept], return_inverse=True)
    return replace(budgets, count=len(used), flops=budgets.flops[used], index=index)


def _identity(frame: pd.DataFrame, axis: str, shape: Geometry) -> pd.DataFrame:
    """Return what the fit depends on, for the digest."""
    swept = frame[axis if axis in frame else "params"]
    table = pd.DataFrame({"compute": frame["compute"], "x": swept, "loss": frame["loss"]})
    if shape != PLAIN_TRANSFORMER:
        table["tokens"] = frame["tokens"]
    return table.assign(block=frame["block"].astype(str) if "block" in frame else "")


def fit_points(prepared: IsoflopPoints, config: FitConfig) -> GroupFit:
    frame, index, shape = prepared.frame, prepared.budgets.index, prepared.shape
    names, rows = frame.index.to_numpy(str), np.arange(len(frame))
    looped = prepared.axis == "recurrence"
    tokens, losses = frame["tokens"].to_numpy(float), frame["loss"].to_numpy(float)
    values = frame["recurrence" if looped else "params"].to_numpy(float)
    params = np.asarray(shape.params(values))
    variable: Quantity = "mean_recurrence" if looped else "params"
    cells = Curves(
        variable=variable,
        budgets_flops=prepared.budgets.flops,
        budget=index,
        rows=rows,
        values=values,
        tokens=tokens,
        params=params,
        loss_nats=losses,
    )
    drawn = draws(config.bootstrap, len(frame), config.seed, "points")
    blocks = frame["block"].to_numpy(str) if "block" in frame else names
    inputs = Inputs(
        cells=cells,
        runs=Points(rows=rows, params=params, tokens=tokens, loss_nats=losses),
        shape=shape,
        draws=resample(drawn, config.resampling, index, blocks, "points", config.seed),
        floor=prepared.floor,
        config=config,
        run_ids=names,
    )
    columns = {
        "target_flops": prepared.budgets.flops[index],
        "params": params,
        "tokens": tokens,
        "val_loss_nats": losses,
        **({"mean_recurrence": values} if looped else {}),
    }
    table = pd.DataFrame({"run_id": names, "kind": "looped", **columns})
    counted = "6 N D" if shape == PLAIN_TRANSFORMER else "the table's tokens"
    return fit_group("points", ("", counted), table, inputs)


def points_geometry(points: pd.DataFrame, axis: str) -> tuple[Geometry, tuple[str, ...]]:
    """Return N and FLOPs per token over the swept variable, and notes on how well a line describes them.

    Parameters
    ----------
    points : columns compute, params and tokens, and recurrence where it is the axis.

    Raises
    ------
    TableError : FLOPs per token are no line in the swept variable: several families, most likely.
    """
    compute, params, tokens = (points[name].to_numpy(float) for name in ("compute", "params", "tokens"))
    if axis != "recurrence":
        if np.allclose(6 * params * tokens, compute, rtol=EQUAL, atol=0):
            return PLAIN_TRANSFORMER, ()
        fixed, slope, scatter = _line(params, compute / tokens)
        if scatter > NO_LINE:
            raise TableError(
                f"FLOPs per token are no line in the size, they scatter by {percent(scatter)}: of several "
                "families take one, as where='recurrence == 1', or fit the surface law (law=surface)"
            )
        shape = replace(PLAIN_TRANSFORMER, flops_fixed=fixed, flops_slope=slope)
        return shape, _scattered("C / D over the size", scatter)
    depth = points["recurrence"].to_numpy(float)
    fixed, slope, scatter = _line(depth, compute / tokens)
    if scatter > NO_LINE:
        raise TableError(
            f"FLOPs per token are no line in the recurrence, they scatter by {percent(scatter)}: of several "
            "sizes take one, as where='scale == \"small\"'"
        )
    static, looped, around = _line(depth, params)
    notes = _scattered("C / D over the recurrence", scatter)
    if np.allclose(6 * params * tokens, compute, rtol=EQUAL, atol=0):
        notes = *notes, "N is C / 6 D: columns.params= maps the parameters, with the loops unrolled"
    if around > NO_LINE or looped * depth.max() < EQUAL * params.max():
        static, looped = fixed / FLOPS_PER_PARAM, slope / FLOPS_PER_PARAM
        notes = *notes, "params do not grow with the recurrence: N is C / 6 D, the loops unrolled"
    return Geometry(
        static_params=static,
        looped_params=looped,
        flops_fixed=fixed,
        flops_slope=slope,
        backprop_share=1.0,
    ), notes


def _line(x: Array, y: Array) -> tuple[float, float, float]:
    """Return the line of least relative squares, through the origin where it would fall, and the scatter."""
    design = np.stack([1 / y, x / y], -1)
    fixed, slope = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
    if slope <= 0 or fixed + slope * x.min() <= 0:
        fixed, slope = 0.0, float(np.exp(np.log(y / x).mean()))
    return float(fixed), float(slope), float(np.sqrt(np.mean((design @ [fixed, slope] - 1) ** 2)))


def _scattered(what: str, scatter: float) -> tuple[str, ...]:
    return (f"{what} scatters by {percent(scatter)} about a line: so does D*",) if scatter > SCATTER else ()
