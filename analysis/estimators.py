"""The three estimators of a group's optima, side by side: parabola, shared shape and parametric surface.

All three see the same noise draws, so that a disagreement can be told from their joint scatter. The default is the
shared shape: it has no parabola bias and assumes no law across budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from analysis.config import FitConfig
from analysis.frontier import RecurrencePath, optimum
from analysis.geometry import Geometry
from analysis.isoflop import HIDDEN, Curves, Optimum, Quantity, judge, refusal_before, refused
from analysis.noise import NoiseFloor
from analysis.parabola import fit_parabola, minimum, predict
from analysis.powerlaw import PowerLaw, power_law
from analysis.resample import Draws, NoiseLevel
from analysis.shared_shape import SharedShape, fit_shared_shape
from analysis.surface import Surface, fit_surface, refit

Array = np.ndarray[Any, np.dtype[np.float64]]
EstimatorName = Literal["shared shape", "parabola", "surface"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)
DEFAULT: EstimatorName = "shared shape"
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
SURFACE_SPARE = 3  # points beyond its five parameters that the surface needs

# (quantity, index of the budget, values of the swept variable) -> loss in nats
Curve = Callable[[Quantity, int, Array], Array]


@dataclass(frozen=True, kw_only=True)
class EstimatorFit:
    """What one estimator says of a group: optima per budget, power laws, and the curve it fitted."""

    name: EstimatorName
    refusal: str | None = None
    noise: NoiseLevel | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    optima: dict[Quantity, tuple[Optimum, ...]] = field(default_factory=dict)
    laws: dict[Quantity, PowerLaw] = field(default_factory=dict)
    curve: Curve | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One group as the estimators see it."""

    group: pd.DataFrame
    cells: Curves
    shape: Geometry
    draws: Draws
    floor: NoiseFloor
    config: FitConfig

    def level(self, squares: float, freedom: int) -> NoiseLevel:
        """Return the noise of the replicate seeds, else that of a fit's residuals."""
        if self.floor.sd_nats is not None:
            return NoiseLevel(
                sd_nats=self.floor.sd_nats,
                degrees_of_freedom=self.floor.degrees_of_freedom,
                source="replicate seeds",
            )
        return NoiseLevel(
            sd_nats=float(np.sqrt(squares / freedom)),
            degrees_of_freedom=freedom,
            source="residuals of this fit, training noise unknown",
        )


def fit_parabolas(inputs: Inputs) -> EstimatorFit:
    """Fit a quadratic per budget in log recurrence and, apart from it, in log tokens."""
    cells, config = inputs.cells, inputs.config
    usable = [k for k in range(len(cells.budgets_flops)) if refusal_before(cells, k) is None]
    if not usable:
        return _none("parabola", cells)
    optima: dict[Quantity, tuple[Optimum, ...]] = {}
    fitted: dict[tuple[Quantity, int], tuple[Array, Array]] = {}
    noise: NoiseLevel | None = None
    for quantity in QUANTITIES:
        squares, freedom = 0.0, 0
        for k in usable:
            at = cells.budget == k
            x = np.log(cells.axis(quantity)[at])
            coefficients, residual = fit_parabola(x, cells.loss_nats[at])
            fitted[quantity, k] = x, coefficients
            squares, freedom = squares + float(residual @ residual), freedom + len(x) - 3
        level = inputs.level(squares, freedom)
        noise = noise or level
        optima[quantity] = tuple(
            _parabola_optimum(inputs, quantity, k, fitted, level) for k in range(len(cells.budgets_flops))
        )

    def curve(quantity: Quantity, budget: int, values: Array) -> Array:
        x, coefficients = fitted[quantity, budget]
        return predict(x, coefficients, np.log(values))

    return EstimatorFit(
        name="parabola",
        noise=noise,
        optima=optima,
        laws={quantity: power_law(quantity, optima[quantity], config) for quantity in QUANTITIES},
        curve=curve,
    )


def _parabola_optimum(
    inputs: Inputs,
    quantity: Quantity,
    budget: int,
    fitted: dict[tuple[Quantity, int], tuple[Array, Array]],
    level: NoiseLevel,
) -> Optimum:
    cells = inputs.cells
    early = refusal_before(cells, budget)
    if early:
        return refused(cells, quantity, budget, early)
    x, coefficients = fitted[quantity, budget]
    noise = inputs.draws.noise(level, cells.rows[cells.budget == budget])
    resampled, _ = fit_parabola(x, predict(x, coefficients, x) + noise)
    place, value = minimum(x, coefficients)
    draws, losses = minimum(x, resampled)
    return judge(cells, quantity, budget, (float(place), float(value)), draws, losses, inputs.config)


def fit_shared(inputs: Inputs) -> EstimatorFit:
    """Fit all isoFLOP curves with one shape."""
    cells = inputs.cells
    usable = [k for k in range(len(cells.budgets_flops)) if refusal_before(cells, k) is None]
    at = np.isin(cells.budget, usable)
    freedom = int(at.sum()) - 3 * len(usable) - 2
    if not usable:
        return _none("shared shape", cells)
    if freedom < 1:
        return _none("shared shape", cells, f"{at.sum()} points for {3 * len(usable) + 2} parameters")
    index = np.searchsorted(usable, cells.budget[at])
    u, v, losses = np.log(cells.params[at]), np.log(cells.tokens[at]), cells.loss_nats[at]
    point = fit_shared_shape(u, v, losses[None], index)
    level = inputs.level(float(point.squared_error[0]), freedom)
    base = np.zeros_like(losses)
    for k in range(len(usable)):
        base[index == k] = point.loss(k, u[index == k], v[index == k])
    noisy = base + inputs.draws.noise(level, cells.rows[at])
    resampled = fit_shared_shape(u, v, noisy, index, start=point.exponents[0])
    path = RecurrencePath(
        shape=inputs.shape,
        budgets_flops=cells.budgets_flops[usable],
        middle=float(np.log(cells.mean_recurrence).mean()),
    )

    def curve(quantity: Quantity, budget: int, values: Array) -> Array:
        flops = float(cells.budgets_flops[budget])
        log_n, log_d = _along(inputs.shape, quantity, flops, values)
        return point.loss(usable.index(budget), log_n, log_d)

    optima = _optima(inputs, path, usable, _shared_minima(path, point), _shared_minima(path, resampled))
    a, b = point.exponents[0]
    return EstimatorFit(
        name="shared shape",
        noise=level,
        parameters={"a": float(a), "b": float(b)},
        optima=optima,
        laws={quantity: power_law(quantity, optima[quantity], inputs.config) for quantity in QUANTITIES},
        curve=curve,
    )


def fit_parametric(inputs: Inputs) -> EstimatorFit:
    """Fit the parametric surface to every looped run and read its frontier at the budgets."""
    cells, looped = inputs.cells, (inputs.group["kind"] == "looped").to_numpy()
    rows = np.flatnonzero(looped)
    used = inputs.group.iloc[rows]
    if len(rows) < 5 + SURFACE_SPARE or used["mean_recurrence"].nunique() < 3 or used["tokens"].nunique() < 3:
        return _none(
            "surface",
            cells,
            f"{len(rows)} looped runs for 5 parameters, at least {5 + SURFACE_SPARE} are needed",
        )
    u = np.log(inputs.shape.params(used["mean_recurrence"].to_numpy(float)))
    v, losses = np.log(used["tokens"].to_numpy(float)), used["val_loss_nats"].to_numpy(float)
    point = fit_surface(u, v, losses)
    base = point.loss(u, v)
    level = inputs.level(float(np.square(losses - base).sum()), len(rows) - 5)
    resampled = refit(point, base + inputs.draws.noise(level, rows))
    everywhere = list(range(len(cells.budgets_flops)))
    path = RecurrencePath(
        shape=inputs.shape,
        budgets_flops=cells.budgets_flops,
        middle=float(np.log(cells.mean_recurrence).mean()),
    )

    def curve(quantity: Quantity, budget: int, values: Array) -> Array:
        return point.loss(*_along(inputs.shape, quantity, float(cells.budgets_flops[budget]), values))

    optima = _optima(inputs, path, everywhere, _surface_minima(path, point), _surface_minima(path, resampled))
    bound = [
        name
        for name, held in zip(("E", "A", "B", "alpha", "beta"), point.fit.at_bound[0], strict=True)
        if held
    ]
    notes = (f"{point.starts_agreeing} of {point.starts} starts reach the optimum",)
    if bound:
        notes += (f"{', '.join(bound)} at a bound: not identified by these runs",)
    return EstimatorFit(
        name="surface",
        noise=level,
        parameters={**point.coefficients(), "huber_objective": float(point.fit.objective[0])},
        notes=notes,
        optima=optima,
        laws={quantity: power_law(quantity, optima[quantity], inputs.config) for quantity in QUANTITIES},
        curve=curve,
    )


def _none(name: EstimatorName, cells: Curves, reason: str | None = None) -> EstimatorFit:
    """Return an estimator that was not fitted, with the reason at every budget."""
    optima = {
        quantity: tuple(
            refused(cells, quantity, k, reason or refusal_before(cells, k) or "")
            for k in range(len(cells.budgets_flops))
        )
        for quantity in QUANTITIES
    }
    why = reason or "no budget has enough recurrences"
    return EstimatorFit(
        name=name,
        refusal=why,
        optima=optima,
        laws={quantity: PowerLaw(quantity=quantity, refusal=why) for quantity in QUANTITIES},
    )


def _along(shape: Geometry, quantity: Quantity, flops: float, values: Array) -> tuple[Array, Array]:
    """Return log N and log D at values of the swept variable on one isoFLOP curve."""
    if quantity == "mean_recurrence":
        depth = np.asarray(values, float)
    else:
        depth = (flops / np.asarray(values, float) - shape.flops_fixed) / shape.flops_slope
    return np.log(shape.params(depth)), np.log(shape.tokens(depth, flops))


def _shared_minima(path: RecurrencePath, fit: SharedShape) -> tuple[Array, Array]:
    means = (fit.log_params_mean, fit.log_tokens_mean)
    s = optimum(path, fit.exponents, fit.amplitudes, means)
    u, v = _place(path, s, means)
    a, b = fit.exponents[:, 0, None], fit.exponents[:, 1, None]
    level, p, r = np.moveaxis(fit.amplitudes, -1, 0)
    return s, level + p * np.expm1(-a * u) / a + r * np.expm1(-b * v) / b


def _surface_minima(path: RecurrencePath, surface: Surface) -> tuple[Array, Array]:
    means = (surface.log_params_mean, surface.log_tokens_mean)
    s = optimum(path, surface.exponents(), surface.amplitudes(), means)
    u, v = _place(path, s, means)
    e, a, b, alpha, beta = (surface.fit.parameters[:, i, None] for i in range(5))
    return s, np.exp(e) + np.exp(a - alpha * u) + np.exp(b - beta * v)


def _place(path: RecurrencePath, s: Array, means: tuple[float, float]) -> tuple[Array, Array]:
    finite = np.where(np.isfinite(s), s, path.middle)
    return path.log_params(finite) - means[0], path.log_tokens(finite) - means[1]


def _optima(
    inputs: Inputs,
    path: RecurrencePath,
    usable: list[int],
    point: tuple[Array, Array],
    resampled: tuple[Array, Array],
) -> dict[Quantity, tuple[Optimum, ...]]:
    """Judge the minima in recurrence, and the tokens that the same minima buy."""
    cells = inputs.cells
    found: dict[Quantity, list[Optimum]] = {quantity: [] for quantity in QUANTITIES}
    for k in range(len(cells.budgets_flops)):
        if k not in usable:
            for quantity in QUANTITIES:
                found[quantity].append(refused(cells, quantity, k, refusal_before(cells, k) or ""))
            continue
        column = usable.index(k)
        flops = float(cells.budgets_flops[k])
        for quantity in QUANTITIES:
            place, draws = (
                _as(quantity, inputs.shape, flops, s[:, column]) for s in (point[0], resampled[0])
            )
            value = (float(place[0]), float(point[1][0, column]))
            found[quantity].append(
                judge(cells, quantity, k, value, draws, resampled[1][:, column], inputs.config)
            )
    return {quantity: tuple(optima) for quantity, optima in found.items()}


def _as(quantity: Quantity, shape: Geometry, flops: float, log_depth: Array) -> Array:
    """Turn log recurrences into logs of the swept variable; tokens fall as recurrence rises."""
    if quantity == "mean_recurrence":
        return log_depth
    finite = np.where(np.isfinite(log_depth), log_depth, 0.0)
    return np.where(np.isfinite(log_depth), np.log(shape.tokens(np.exp(finite), flops)), -log_depth)
