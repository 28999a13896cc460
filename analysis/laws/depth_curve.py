"""The test-time law of one depth curve: L(T) = L_inf + Z exp(-z T) (PAPER (e)).

z is identified only where two limits fit clearly worse: z -> infinity, a plateau with one point off it, and
z -> 0, a straight line that never reaches its floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import fdtri, stdtrit

from analysis.config import Array
from analysis.format import percent

MIN_DEPTHS = 5
# The law is refused where the rms residual exceeds both shares, of the curve's range and of the loss.
MISFIT_OF_RANGE, MISFIT_OF_LOSS = 0.01, 0.001


@dataclass(frozen=True, kw_only=True)
class SaturatingFit:
    """Floor L_inf and amplitude Z in nats and rate z per loop, or a refusal.

    The floor may be determined where z is not.
    """

    floor_nats: float | None = None
    amplitude_nats: float | None = None
    rate: float | None = None
    rate_low: float | None = None
    rate_high: float | None = None  # None: open
    rms_nats: float | None = None
    depths: tuple[int, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()  # of (L_inf, Z, z), from the scatter around the curve
    refusal: str | None = None

    def predict(self, depth: Array) -> Array:
        """Return L(T) in nats."""
        if self.rate is None or self.floor_nats is None or self.amplitude_nats is None:
            raise ValueError(f"no saturating exponential: {self.refusal}")
        return np.asarray(
            self.floor_nats + self.amplitude_nats * np.exp(-self.rate * np.asarray(depth, float))
        )

    def interval(self, depth: Array, confidence: float = 0.95) -> tuple[Array, Array]:
        """Return the ends of the fitted curve's band in nats, to first order in the parameters' errors.

        It reflects the scatter around the curve of one run, not the noise of training.
        """
        depth, middle = np.asarray(depth, float), self.predict(depth)
        slopes = _slopes(depth, float(self.amplitude_nats or 0.0), float(self.rate or 0.0))
        error = np.sqrt(np.einsum("ti,ij,tj->t", slopes, np.array(self.covariance), slopes))
        half = float(stdtrit(len(self.depths) - 3, (1 + confidence) / 2)) * error
        return middle - half, middle + half


def fit_saturating(depths: Array, losses: Array, confidence: float = 0.95) -> SaturatingFit:
    """Fit one depth curve by least squares on the relative residual.

    Parameters
    ----------
    depths, losses : T in loops and the loss in nats [depths].
    confidence : level of the interval of z, which holds the values whose profile stays within the F limit.
    """
    order = np.argsort(depths)
    depths, losses = np.asarray(depths, float)[order], np.asarray(losses, float)[order]
    shown = tuple(int(v) for v in depths)
    if len(depths) < MIN_DEPTHS:
        return SaturatingFit(depths=shown, refusal=f"{len(depths)} depths, at least {MIN_DEPTHS} are needed")
    grid = np.log(np.geomspace(0.02 / np.ptp(depths), 30.0 / np.diff(depths).min(), 300))
    errors = _project(depths, losses, np.exp(grid))[1]

    def error(log_rate: float) -> float:
        return float(_project(depths, losses, np.exp([log_rate]))[1][0])

    best = int(np.argmin(errors))
    bracket = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    log_rate = float(minimize_scalar(error, bounds=bracket, method="bounded", options={"xatol": 1e-10}).x)
    floor, amplitude = (float(v) for v in _project(depths, losses, np.exp([log_rate]))[0][0])
    residual = floor + amplitude * np.exp(-np.exp(log_rate) * depths) - losses
    rms = float(np.sqrt(np.mean(residual**2)))
    freedom = len(depths) - 3
    limit = error(log_rate) * float(1 + fdtri(1, freedom, confidence) / freedom) + 1e-24
    refusal = _refusal(depths, losses, amplitude, rms, limit)
    if refusal:
        plateau = floor if "one point" in refusal else None
        return SaturatingFit(depths=shown, floor_nats=plateau, rms_nats=rms, refusal=refusal)
    return SaturatingFit(
        depths=shown,
        floor_nats=floor,
        amplitude_nats=amplitude,
        rate=float(np.exp(log_rate)),
        rate_low=_crossing(error, log_rate, grid[grid < log_rate][::-1], limit),
        rate_high=_crossing(error, log_rate, grid[grid > log_rate], limit),
        rms_nats=rms,
        covariance=_covariance(depths, losses, amplitude, float(np.exp(log_rate)), error(log_rate)),
    )


def _slopes(depths: Array, amplitude: float, rate: float) -> Array:
    """Return the derivatives of L(T) by L_inf, Z and z [depths, 3]."""
    decay = np.exp(-rate * depths)
    return np.stack([np.ones_like(depths), decay, -amplitude * depths * decay], -1)


def _covariance(
    depths: Array, losses: Array, amplitude: float, rate: float, error: float
) -> tuple[tuple[float, ...], ...]:
    """Return the covariance of (L_inf, Z, z) from the curvature at the optimum and its squared error."""
    weighted = _slopes(depths, amplitude, rate) / losses[:, None]
    inverse = np.linalg.inv(weighted.T @ weighted) * error / (len(depths) - 3)
    return tuple(tuple(row) for row in inverse.tolist())


def _project(depths: Array, losses: Array, rates: Array) -> tuple[Array, Array]:
    """Return the best (L_inf, Z) [rates, 2] and the squared relative error [rates]."""
    weight = 1 / losses**2
    decay = np.exp(-rates[:, None] * (depths - depths[0]))
    mean_decay = decay @ weight / weight.sum()
    mean_loss = losses @ weight / weight.sum()
    centred = decay - mean_decay[:, None]
    amplitude = (centred * weight) @ (losses - mean_loss) / np.maximum((centred**2) @ weight, 1e-300)
    floor = mean_loss - amplitude * mean_decay
    residual = floor[:, None] + amplitude[:, None] * decay - losses
    with np.errstate(over="ignore"):  # Z of a curve that starts late and decays fast
        return np.stack([floor, amplitude * np.exp(rates * depths[0])], -1), (residual**2) @ weight


def _refusal(depths: Array, losses: Array, amplitude: float, rms: float, limit: float) -> str | None:
    if amplitude <= 0:
        return "the loss does not fall with depth"
    weight = 1 / losses
    spike = np.stack([np.ones_like(depths), np.arange(len(depths)) == 0], -1) * weight[:, None]
    line = np.stack([np.ones_like(depths), depths], -1) * weight[:, None]
    spike_error, line_error = (
        float(np.linalg.lstsq(x, losses * weight, rcond=None)[1].sum()) for x in (spike, line)
    )
    if rms > MISFIT_OF_RANGE * np.ptp(losses) and rms > MISFIT_OF_LOSS * losses.min():
        share = rms / np.ptp(losses)
        size = f"rms residual {rms:.4f}, {percent(share, 1)} of the curve's range"
        return f"the saturating exponential does not hold ({size})"
    if spike_error <= limit:
        return "z is not identified: one point alone lies off the plateau"
    if line_error <= limit:
        return "z is not identified: the curve is as well a straight line"
    return None


def _crossing(error: Callable[[float], float], log_rate: float, outward: Array, limit: float) -> float | None:
    """Return the first z on the `outward` grid's side where the profile crosses `limit`, None without one."""
    inner = log_rate
    for outer in outward.tolist():
        if error(outer) > limit:
            return float(np.exp(brentq(lambda s: error(s) - limit, inner, outer, xtol=1e-12)))
        inner = outer
    return None
