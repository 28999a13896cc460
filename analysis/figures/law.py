"""A fitted law beside its points: over its column, or predicted against observed where it has several."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from analysis.config import Array
from analysis.figures import style
from analysis.laws.curve_laws import CurveLaws
from analysis.laws.result import LawFit
from analysis.laws.task_score import TaskLaw

WIDE = 10.0  # largest over smallest value from which an axis is logarithmic
SHOWN = 12  # depth curves drawn


def plot_law(fit: LawFit, ax: Axes | None = None) -> Axes:
    """Draw a law over its column with the band of its resamples, or predicted against observed losses."""
    ax = ax or _axis()
    if len(fit.model.columns) > 1:
        return _against_observed(ax, fit.losses, fit.predict(fit.data), fit.law)
    (name,) = fit.model.columns
    values = fit.data[name]
    places = _places(ax, values)
    band = fit.band({name: places}) if len(fit.draws) else None
    _points_and_curve(ax, values, fit.losses, places, fit.predict({name: places}), band)
    ax.set_xlabel(name)
    ax.set_ylabel("loss (nats)" if name != "x" else "value")
    ax.set_title(fit.law)
    return ax


def plot_curve_laws(fits: CurveLaws, ax: Axes | None = None) -> Axes:
    """Draw up to twelve depth curves, each with its law where it determines one."""
    ax = ax or _axis()
    shown = fits.curves[:SHOWN]
    every = np.concatenate([curve.points["depth"].to_numpy(float) for curve in shown])
    places = _places(ax, every)
    for curve in shown:
        (points,) = ax.plot(curve.points["depth"], curve.points["loss"], "o", markersize=3.0)
        ax.plot(places, fits.predict(curve, places), color=points.get_color(), linewidth=0.8)
    ax.set_xlabel("test-time depth T (loops)")
    ax.set_ylabel("loss (nats)")
    more = f", {SHOWN} of {len(fits.curves)} curves" if len(fits.curves) > SHOWN else ""
    ax.set_title(f"{fits.law}{more}")
    return ax


def plot_task_law(law: TaskLaw, ax: Axes | None = None) -> Axes:
    """Draw a score over the loss with its law and band; raises ValueError where the law is refused."""
    ax = ax or _axis()
    fit = law.fit
    losses = fit.data["loss"] if fit else np.empty(0)
    places = np.linspace(losses.min(), losses.max(), 200) if len(losses) else losses
    fitted = law.predict(places)
    scores = 1 - fit.losses if fit else losses
    _points_and_curve(ax, losses, scores, places, fitted, law.band(places))
    ax.set_xlabel("loss (nats)")
    ax.set_ylabel("score")
    ax.set_title(law.task)
    return ax


def _axis() -> Axes:
    _, (ax,) = style.figure(1, width=style.COLUMN_INCHES)
    return ax


def _places(ax: Axes, values: Array) -> Array:
    """Return where a curve is drawn, and make the axis logarithmic where the values span a decade."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > WIDE * low:
        ax.set_xscale("log")
        return np.geomspace(low, high, 200)
    return np.linspace(low, high, 200)


def _points_and_curve(
    ax: Axes, x: Array, y: Array, places: Array, fitted: Array, band: tuple[Array, Array] | None
) -> None:
    ax.plot(x, y, "o", color=style.INK, markersize=3.0, label="points")
    ax.plot(places, fitted, color=style.WARN, label="law")
    if band is not None:
        ax.fill_between(places, *band, color=style.WARN, alpha=0.15, linewidth=0, label="95 % interval")
    ax.legend()


def _against_observed(ax: Axes, observed: Array, fitted: Array, title: str) -> Axes:
    ends = [min(observed.min(), fitted.min()), max(observed.max(), fitted.max())]
    ax.plot(ends, ends, color=style.FAINT, linewidth=0.6)
    ax.plot(fitted, observed, "o", color=style.INK, markersize=3.0)
    ax.set_xlabel("loss by the law (nats)")
    ax.set_ylabel("loss (nats)")
    ax.set_title(title)
    return ax
