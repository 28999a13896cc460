"""What the points of a fit do not determine: parameters at a bound, flat directions, pairs that trade off."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from analysis.config import Array, Mask
from analysis.laws.law import Law
from analysis.laws.newton import Fit
from analysis.laws.objective import Terms, log_terms

TRADE_OFF = 0.98  # correlation past which two parameters are said to be determined only together
FLAT = 1e-9  # eigenvalue, of a unit diagonal, below which a direction moves no loss
ALONG = 0.1  # share of a parameter in a direction, past which it is named


def held(law: Law, slopes: Array, at_bound: Mask) -> Mask:
    """Mark what only a bound determines [rows, parameters], given which parameters are at one.

    That is also a parameter all of whose terms have an amplitude at a bound: an exponent says nothing of a
    term that vanished. `slopes` [terms, points, parameters] are those of the log terms.
    """
    acts = slopes != 0
    amplitudes = np.array([parameter.kind == "amplitude" for parameter in law.parameters])
    found = at_bound.copy()
    for pattern in np.unique(at_bound[:, amplitudes], axis=0):
        lost = acts[..., amplitudes][..., pattern].any(-1, keepdims=True)
        only = ~(acts & ~lost).any((0, 1))
        found[(at_bound[:, amplitudes] == pattern).all(1)] |= only
    return found


def undetermined(law: Law, terms: Terms, point: Fit) -> tuple[str, ...]:
    """Say in words which parameters of a fit the points determine only together, or not at all.

    An amplitude and its own exponent always trade off (the units of the column decide how much), so
    amplitudes other than the floor are left out of the pairs.
    """
    fitted, at_bound = point.parameters[0], point.at_bound[0]
    slopes = slopes_at(terms, fitted)
    lost = held(law, slopes, point.at_bound)[0]
    said = []
    for parameter, at, gone in zip(law.parameters, at_bound, lost, strict=True):
        if at:
            said.append(f"{parameter.name} lies at a bound: these points do not identify it")
        elif gone:
            said.append(f"{parameter.name} is not identified: the amplitude of its term lies at a bound")
    logs = log_terms(terms, fitted[None])[0]
    share = np.exp(logs[0]) / np.exp(logs[0]).sum(0)
    jacobian = np.einsum("tn,tnp->np", share, slopes)
    free = np.flatnonzero(~lost)
    normal = jacobian[:, free].T @ jacobian[:, free]
    scale = np.sqrt(np.maximum(np.diagonal(normal), 1e-300))
    normal = normal / np.outer(scale, scale)
    covariance = np.linalg.pinv(normal, hermitian=True)
    spread = np.sqrt(np.maximum(np.diagonal(covariance), 1e-300))
    correlation = covariance / np.outer(spread, spread)
    names = [law.parameters[i].name for i in free]
    values, vectors = np.linalg.eigh(normal)
    for vector in vectors[:, values < FLAT].T:
        along = [name for name, share in zip(names, vector, strict=True) if abs(share) > ALONG]
        said.append(f"{' and '.join(along)} are not identified: the loss is flat along them")
    shown = [
        k for k, i in enumerate(free) if law.parameters[i].kind != "amplitude" or names[k] in ("E", "L_inf")
    ]
    for first, second in combinations(shown, 2):
        together = correlation[first, second]
        if abs(together) > TRADE_OFF:
            said.append(f"{names[first]} and {names[second]} are determined only together ({together:+.3f})")
    return tuple(said)


def slopes_at(terms: Terms, fitted: Array) -> Array:
    """Return the slopes of the log terms at a fit [terms, points, parameters]."""
    slopes = log_terms(terms, fitted[None])[1]
    return slopes[0] if slopes.ndim == 4 else slopes
