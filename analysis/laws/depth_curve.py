"""The law of one depth curve: by default L(T) = L_inf + Z exp(-z T) (PAPER (e)), or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from analysis.config import MIN_DEPTHS, Array, Mask
from analysis.laws.decay import FLOOR, Decay, decay
from analysis.laws.depth_refusal import NAMES, Optimum, derivatives
from analysis.laws.registry import LAWS
from analysis.serialize import HIDDEN

EXPONENTIAL = "saturating"


@dataclass(frozen=True, kw_only=True)
class DepthFit:
    """Floor L_inf and amplitude Z in nats and rate z per loop, or a refusal.

    The floor may be determined where z is not.
    """

    floor_nats: float | None = None
    amplitude_nats: float | None = None
    rate: float | None = None
    rate_low: float | None = None
    rate_high: float | None = None  # None: open
    rms_nats: float | None = None
    depths: tuple[float, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()  # of (L_inf, Z, z), from the scatter around the curve
    refusal: str | None = None
    law: str = field(default=EXPONENTIAL, metadata=HIDDEN)

    def predict(self, depth: Array) -> Array:
        """Return L(T) in nats."""
        return self._curve(depth)[0]

    def interval(self, depth: Array, confidence: float = 0.95) -> tuple[Array, Array]:
        """Return the ends of the fitted curve's band in nats, to first order in the parameters' errors.

        It reflects the scatter around the curve of one run, not the noise of training.
        """
        middle, slopes = self._curve(depth)
        error = np.sqrt(np.einsum("ti,ij,tj->t", slopes, np.array(self.covariance), slopes))
        half = float(stdtrit(len(self.depths) - 3, (1 + confidence) / 2)) * error
        return middle - half, middle + half

    def _curve(self, depth: Array) -> tuple[Array, Array]:
        """Return L(T) and its derivatives by L_inf, Z and z [depths, 3]."""
        if self.rate is None or self.floor_nats is None or self.amplitude_nats is None:
            raise ValueError(f"no {NAMES[self.law]}: {self.refusal}")
        term, slope = decay(LAWS[self.law], depth, np.array([self.rate]))
        values = self.floor_nats + self.amplitude_nats * term[0]
        return values, derivatives(term[0], slope, self.amplitude_nats)


def fit_depth_curve(
    depths: Array,
    losses: Array,
    *,
    errors: Array | None = None,
    law: str = EXPONENTIAL,
    confidence: float = 0.95,
) -> DepthFit:
    """Fit one depth curve by least squares on the relative residual.

    Parameters
    ----------
    depths, losses : T in loops and the loss in nats [depths].
    errors : standard errors of the losses [depths], nan or None where unknown.
    law : name of a law of depth alone.
    confidence : level of the interval of z, which holds the values whose profile stays within the F limit.
    """
    losses = np.asarray(losses, float)[None]
    stated = None if errors is None else np.asarray(errors, float)[None]
    return fit_depth_curves(depths, losses, errors=stated, law=law, confidence=confidence)[0]


def fit_depth_curves(
    depths: Array,
    losses: Array,
    kept: Mask | None = None,
    *,
    errors: Array | None = None,
    law: str = EXPONENTIAL,
    confidence: float = 0.95,
) -> list[DepthFit]:
    """Fit several curves over the same depths at once; see `fit_depth_curve`.

    Parameters
    ----------
    losses, errors : [curves, depths], or one row for all curves.
    kept : False leaves a depth out of a curve [curves, depths].
    """
    order = np.argsort(depths, kind="stable")
    depths, losses = np.asarray(depths, float)[order], np.asarray(losses, float)[:, order]
    kept = np.ones_like(losses, bool) if kept is None else np.asarray(kept)[:, order]
    losses = np.broadcast_to(losses, kept.shape)
    stated = np.broadcast_to(np.nan if errors is None else np.asarray(errors, float)[:, order], kept.shape)
    enough = kept.sum(1) >= MIN_DEPTHS
    fits = [
        DepthFit(
            law=law,
            depths=_whole(depths[row]),
            refusal=f"{row.sum()} depths, at least {MIN_DEPTHS} are needed",
        )
        for row in kept
    ]
    if enough.any():
        values = losses[enough]
        curves = Decay(law=LAWS[law], depths=depths, values=values, weights=kept[enough] / values**2)
        for place, fit in zip(np.flatnonzero(enough), _fit(curves, stated[enough], confidence), strict=True):
            fits[place] = fit
    return fits


def _whole(depths: Array) -> tuple[float, ...]:
    return tuple(int(depth) if depth.is_integer() else depth for depth in depths.tolist())


def _fit(curves: Decay, stated: Array, confidence: float) -> list[DepthFit]:
    rates, kept = curves.best_rates(), curves.weights > 0
    floor, amplitude, error, _ = curves.fitted(rates)
    term, slope = decay(curves.law, curves.depths, rates, relative=True)
    spike = np.argmax(kept, 1)[:, None] == np.arange(len(curves.depths))
    shapes = np.stack([np.zeros(spike.shape), spike, np.broadcast_to(slope, spike.shape)], 1)
    limits = curves.project(shapes)[2]
    optima = [
        Optimum(
            law=curves.law.name,
            depths=curves.depths[row],
            losses=curves.values[i, row],
            stated=stated[i, row],
            floor=float(floor[i]),
            amplitude=float(amplitude[i]),
            rate=float(rates[i]),
            first=float(curves.depths[0]),
            term=term[i, row],
            slope=slope[row],
            error=float(error[i]),
            flat_error=float(limits[i, 0]),
            spike_error=float(limits[i, 1]),
            line_error=float(limits[i, 2]),
        )
        for i, row in enumerate(kept)
    ]
    ends = curves.crossings(rates, np.array([optimum.limit(1, confidence) for optimum in optima]))
    return [
        _conclude(optimum, low, high, confidence)
        for optimum, low, high in zip(optima, *(end.tolist() for end in ends), strict=True)
    ]


def _conclude(optimum: Optimum, low: float, high: float, confidence: float) -> DepthFit:
    """Return the fit, or its refusal."""
    depths, law = _whole(optimum.depths), LAWS[optimum.law]
    refusal = optimum.refusal(confidence)
    if refusal is not None:
        plateau = optimum.floor if "one point" in refusal else None
        return DepthFit(
            law=law.name, depths=depths, floor_nats=plateau, rms_nats=optimum.rms, refusal=refusal
        )
    term, slope = decay(law, optimum.depths, np.array([optimum.rate]))
    start = decay(law, np.array([optimum.first]), np.array([optimum.rate]))[0]
    amplitude = optimum.amplitude / float(start[0, 0])
    weighted = derivatives(term[0], slope, amplitude) / optimum.losses[:, None]
    if FLOOR not in (parameter.name for parameter in law.parameters):
        weighted[:, 0] = 0.0
    scale = np.linalg.norm(weighted, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    inverse = np.linalg.pinv((weighted / scale).T @ (weighted / scale)) / np.outer(scale, scale)
    covariance = inverse * optimum.error / (len(depths) - 3)
    return DepthFit(
        law=law.name,
        depths=depths,
        floor_nats=optimum.floor,
        amplitude_nats=amplitude,
        rate=optimum.rate,
        rate_low=low if np.isfinite(low) else None,
        rate_high=high if np.isfinite(high) else None,
        rms_nats=optimum.rms,
        covariance=tuple(tuple(row) for row in covariance.tolist()),
    )
