"""Whether one depth curve determines a law of depth: identifiability, and a test of fit against noise.

z is identified only where two limits fit clearly worse: z -> infinity, a plateau with one point off it, and
z -> 0, a straight line that never reaches its floor.

The law is refused where its misfit is material (see `MATERIAL_RANGE`) and one of two tests says that it is
not noise. All depths of a run are evaluated on the same tokens, so most of a loss's standard error is common
to the curve and moves its floor alone. The stated errors therefore bound the noise of the shape from above.
The scatter of the residuals between neighbouring depths estimates that noise from the deeper half of the
curve, where the law is flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import chdtrc, fdtri

from analysis.config import Array
from analysis.format import percent
from analysis.stats.noise import ROUNDING

# A misfit is material where the rms residual exceeds both shares, of the curve's range and of the loss.
MATERIAL_RANGE, MATERIAL_LOSS = 0.01, 0.001
SIGNIFICANCE = 0.04  # of all tests of fit together; curvature of the law in z takes it to 0.05 (validation)
SIMULATED = 2000  # curves of pure noise behind the test against the scatter
MANY = 100  # times the noise, above which the multiple is not printed
CLEAR = 5.0  # a fall or a rise is clear from this multiple of the noise
NAMES = {
    "saturating": "saturating exponential",
    "shifted_power": "shifted power law",
    "power": "power law with a floor",
    "pure_power": "power law",
}


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best fit of one curve [depths] beside the fits of its limits, before it is accepted or refused.

    Errors are weighted sums of squares; `term` and `amplitude` are relative to the depth `first`.
    """

    law: str
    depths: Array
    losses: Array
    stated: Array  # standard errors of the losses, nan where unknown
    floor: float
    amplitude: float
    rate: float
    first: float
    term: Array
    slope: Array
    error: float
    flat_error: float
    spike_error: float
    line_error: float

    @property
    def residual(self) -> Array:
        """Return fit minus loss in nats."""
        return np.asarray(self.floor + self.amplitude * self.term - self.losses)

    @property
    def rms(self) -> float:
        """Return the root mean square of the residual in nats."""
        return float(np.sqrt(np.mean(self.residual**2)))

    @property
    def known(self) -> bool:
        """Return True if the standard error of every loss is stated."""
        return bool(np.isfinite(self.stated).all() and (self.stated > 0).all())

    @property
    def material(self) -> bool:
        """Return True if the residual matters beside the curve's range and the loss."""
        least = max(MATERIAL_RANGE * np.ptp(self.losses), MATERIAL_LOSS * self.losses.min())
        return bool(self.rms > least)

    def limit(self, parameters: int, confidence: float) -> float:
        """Return the error up to which a fit with so many parameters fewer is as good."""
        freedom = len(self.losses) - 3
        quantile = float(fdtri(parameters, freedom, confidence))
        return self.error * (1 + parameters * quantile / freedom) + 1e-24

    def refusal(self, confidence: float) -> str | None:
        """Return why this curve does not determine the law."""
        within = f", within the noise of {self.rms:.2g} nats" if self.material else ""
        limit, misfit = self.limit(1, confidence), self.misfit() if self.material else None
        if misfit is None and self.flat_error <= self.limit(2, confidence):
            return f"z is not identified: the loss does not change with depth{within}"
        if self.amplitude <= 0:
            return self.overthinking() or "the loss does not fall with depth"
        if misfit is not None:
            turn = self.overthinking()
            return f"the {NAMES[self.law]} does not hold ({misfit}){f'; {turn}' if turn else ''}"
        if self.spike_error <= limit:
            return f"z is not identified: one point alone lies off the plateau{within}"
        if self.line_error <= limit:
            return f"z is not identified: the curve is as well a straight line{within}"
        return None

    def misfit(self) -> str | None:
        """Return the size of the misfit if noise does not explain it."""
        size = (
            f"rms residual {self.rms:.4f}, {percent(self.rms / np.ptp(self.losses), 1)} of the curve's range"
        )
        level = SIGNIFICANCE / 2 if self.known else SIGNIFICANCE
        freedom = len(self.losses) - 3
        if self.known and chdtrc(freedom, float(np.sum((self.residual / self.stated) ** 2))) < level:
            return f"{size}, {_multiple(self.rms / self.stated.mean())} times the stated error"
        slopes = derivatives(self.term, self.slope, self.amplitude) / self.losses[:, None]
        if scatter_test(self.depths, self.residual / self.losses, slopes) < level:
            if self.scatter <= ROUNDING * self.losses.min():
                return f"{size}, where neighbouring depths agree to rounding"
            return f"{size}, {_multiple(self.rms / self.scatter)} times the scatter between depths"
        return None

    @property
    def scatter(self) -> float:
        """Return the noise of one point in nats from the residuals of neighbouring deep depths."""
        return float(np.sqrt(_scatter(self.depths, self.residual)))

    def overthinking(self) -> str | None:
        """Return the depth of the least loss if the curve clearly falls to it and clearly rises after it."""
        best = int(np.argmin(self.losses))
        least, last = self.losses[best], self.losses[-1]
        noise = min(self.scatter, self.stated.mean()) if self.known else self.scatter
        clear = max(CLEAR * noise, MATERIAL_RANGE * np.ptp(self.losses), MATERIAL_LOSS * least)
        if self.losses[0] - least <= clear or last - least <= clear:
            return None
        rise = f"{last - least:.2g} nats higher at T = {self.depths[-1]:g}"
        return f"overthinking: the loss is least at T = {self.depths[best]:g} and {rise}"


def _multiple(ratio: float) -> str:
    """Return a multiple of the noise; above `MANY` its size says nothing."""
    return f"over {MANY}" if ratio > MANY else f"{ratio:.2g}"


def scatter_test(depths: Array, residual: Array, slopes: Array) -> float:
    """Return the p value of residuals that exceed their scatter between neighbouring depths.

    Their sum of squares over the variance by that scatter is compared with its distribution under
    independent noise, seen through the same fit.

    Parameters
    ----------
    depths, residual : by ascending depth [depths].
    slopes : derivatives of the fit by its parameters [depths, parameters].
    """
    basis, sizes, _ = np.linalg.svd(slopes / np.maximum(np.abs(slopes).max(0), 1e-300), full_matrices=False)
    basis = basis[:, sizes > 1e-10 * sizes[0]]
    noise = _noise(len(residual))
    left = noise - noise @ basis @ basis.T
    ratios = np.square(left).sum(-1) / _scatter(depths, left)
    ratio = float(np.square(residual).sum() / max(float(_scatter(depths, residual)), 1e-300))
    return float((1 + np.sum(ratios >= ratio)) / (1 + len(ratios)))


def _scatter(depths: Array, residual: Array) -> Array:
    """Return the variance of one residual by its neighbours in the deeper half [...].

    It is the smaller of two estimates: from the steps between neighbours (von Neumann 1941), and from the
    distances to the line through the neighbours on both sides (Gasser, Sroka and Jennen-Steinmetz 1986).
    """
    half = len(depths) // 2
    steps = np.square(np.diff(residual[..., -half:])).mean(-1) / 2
    deep, apart = residual[..., -max(half + 1, 4) :], np.diff(depths[-max(half + 1, 4) :])
    before = apart[1:] / (apart[1:] + apart[:-1])
    bend = deep[..., 1:-1] - before * deep[..., :-2] - (1 - before) * deep[..., 2:]
    bends = np.square(bend / np.sqrt(1 + before**2 + (1 - before) ** 2)).mean(-1)
    return np.asarray(np.minimum(steps, bends))


@lru_cache(maxsize=32)
def _noise(count: int) -> Array:
    """Return curves of pure noise [SIMULATED, count], the same in every call."""
    return np.random.default_rng(0).standard_normal((SIMULATED, count))


def derivatives(term: Array, slope: Array, amplitude: float) -> Array:
    """Return the derivatives of L(T) by L_inf, Z and z [depths, 3]; the term is that at amplitude 1."""
    return np.stack([np.ones_like(term), term, amplitude * slope * term], -1)
