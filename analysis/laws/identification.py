"""What the points of a fit do not identify, judged by the Fisher information at the fit.

A parameter is not identified where a bound determines it, where the loss is flat along it, or where the
points tell it only together with others of its term. The last holds for the iso-depth law on one model size:
all points lie on one curve over the recurrence, and any phi has an alpha that fits it about as well.
Resamples move along this valley and stop where its curvature and the bounds let them. Neither their
percentiles nor a profile covers there, so the interval is open. So it is for a floor and an exponent where
the noise hardly bounds the floor, as on two sizes 1.1 apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from analysis.config import Array, Mask
from analysis.laws.law import LOG_BOUNDS, Law
from analysis.laws.newton import Fit
from analysis.laws.objective import Terms, log_terms

TRADE_OFF = 0.98  # multiple correlation above which parameters are determined only together
FOLLOWS = 0.9  # multiple correlation with such parameters above which another one is not identified either
FLAT = 1e-9  # eigenvalue, for a unit diagonal, below which the loss is flat along a direction
ALONG = 0.1  # component of a flat direction above which its parameter is named
ABSENT = 1e-9  # slope, over the largest, of a parameter that does not act in a term
AT_BOUND = "it lies at a bound"
LOG_VANISHED = np.log(1e-9)  # log share of the loss below which a term has vanished
FLOORS = ("E", "L_inf")
LOOSE_FLOOR = 0.25  # relative standard error of a floor above which what trades off with it is not identified
Ends = tuple[float | None, float | None]  # None: the interval is open on that side
Intervals = dict[str, Ends]


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What the points of a fit do not determine: parameters with the reason, and combinations."""

    not_identified: dict[str, str]
    together: tuple[str, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """Return one phrase for every parameter or combination."""
        apart = (
            f"{name} lies at a bound: these points do not identify it"
            if why == AT_BOUND
            else f"{name} is not identified: {why}"
            for name, why in self.not_identified.items()
        )
        return (*apart, *self.together)


def identification(
    law: Law, terms: Terms, point: Fit, ends: Intervals, covariance: Array | None = None
) -> Identification:
    """Return what the points do not determine; `ends` are the intervals, if any.

    `covariance` is that of the fitted form by linear theory (see `linear_covariance`).

    An amplitude and its own exponent always trade off, by an amount that depends on the units of the column.
    Amplitudes other than the floor are therefore left out of the combinations.
    """
    fitted = point.parameters[0]
    apart = unidentified(law, terms, fitted, point.at_bound[0], covariance)
    shown = [i for i in _compared(law) if law.parameters[i].name not in apart]
    for name, interval in ends.items():
        if None in interval and name not in apart:
            apart[name] = "a bound ends its interval, not the points"
    free = np.flatnonzero(~held_by_bounds(law, slopes_at(terms, fitted), fitted, point.at_bound[0]))
    normal, _ = normal_matrix(log_slopes(terms, fitted)[:, free])
    inverse = np.linalg.pinv(normal, hermitian=True)
    spread = np.sqrt(np.maximum(np.diagonal(inverse), 1e-300))
    correlation = inverse / np.outer(spread, spread)
    phrases = []
    for first, second in combinations(shown, 2):
        together = correlation[np.searchsorted(free, first), np.searchsorted(free, second)]
        if abs(together) > TRADE_OFF:
            names = f"{law.parameters[first].name} and {law.parameters[second].name}"
            phrases.append(f"{names} are determined only together ({together:+.3f})")
    return Identification(not_identified=apart, together=tuple(phrases))


def unidentified(
    law: Law, terms: Terms, fitted: Array, at_bound: Mask, covariance: Array | None = None
) -> dict[str, str]:
    """Return why the points do not identify a parameter, by its name.

    Parameters
    ----------
    fitted : parameters of the fit [parameters].
    at_bound : which of them are at a bound [parameters].
    covariance : of the fitted form, by linear theory; without it the noise of the points is not looked at.
    """
    names = [parameter.name for parameter in law.parameters]
    lost = fixed_by_bounds(law, slopes_at(terms, fitted), at_bound[None])[0]
    vanished = at_bound & (fitted < law.bounds[1])
    why: dict[str, str] = {}
    free, jacobian = np.flatnonzero(~lost), log_slopes(terms, fitted)
    values, vectors = np.linalg.eigh(normal_matrix(jacobian[:, free])[0])
    for vector in vectors[:, values < FLAT].T:
        along = [names[i] for i, share in zip(free, vector, strict=True) if abs(share) > ALONG]
        why |= dict.fromkeys(along, f"the loss is flat along {' and '.join(along)}")
    for group in _only_together(law, terms, fitted):
        if not any(vanished[i] for i in group if law.parameters[i].kind == "amplitude"):
            why |= _trading_off(law, jacobian, group)
    if covariance is not None:
        why = _loose_floors(law, terms, fitted, covariance) | why
    for i in np.flatnonzero(lost):
        why[names[i]] = AT_BOUND if at_bound[i] else "the amplitude of its term lies at a bound"
    return {name: why[name] for name in names if name in why}


def _trading_off(law: Law, jacobian: Array, group: Sequence[int]) -> dict[str, str]:
    """Return the reason for parameters that are determined only together, and for those that follow them.

    The latter are the amplitudes of their term, and every exponent or floor with a multiple correlation with
    them above `FOLLOWS`.

    Parameters
    ----------
    jacobian : slopes of the log loss in the parameters [points, parameters].
    group : the parameters that are determined only together, with the amplitudes of their term.
    """
    exponents = [i for i in group if law.parameters[i].kind != "amplitude"]
    following = [i for i in group if i not in exponents]
    columns, places = (
        jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300),
        np.arange(len(law.parameters)),
    )
    for i in _compared(law):
        if i not in group:
            apart = _left(columns[:, [i]], columns[:, places != i])[0]
            before = _left(columns[:, [i]], columns[:, ~np.isin(places, [i, *exponents])])[0]
            if apart < np.sqrt(1 - FOLLOWS**2) * before:
                following.append(i)
    reasons = {}
    for i in (*exponents, *following):
        others = " and ".join(law.parameters[k].name for k in exponents if k != i)
        reasons[law.parameters[i].name] = f"it is determined only together with {others}"
    return reasons


def _loose_floors(law: Law, terms: Terms, fitted: Array, covariance: Array) -> dict[str, str]:
    """Return the reason for a floor, an exponent that trades off with it, and the amplitudes of its term.

    Most fits have such a pair, and its intervals cover. Where the noise leaves the floor a wide range, the
    pair lies on a curved valley. Resamples stay near the fit, wherever on the valley that is.
    """
    acts = (slopes_at(terms, fitted) != 0).any(1)  # [terms, parameters]
    error = np.sqrt(np.diagonal(covariance))
    compared, why = _compared(law), dict[str, str]()
    for floor in (i for i in compared if law.parameters[i].name in FLOORS and error[i] > LOOSE_FLOOR):
        for i in compared:
            # The covariance with what a bound holds is NaN: the two do not trade off.
            if i == floor or not abs(covariance[floor, i]) > TRADE_OFF * error[floor] * error[i]:
                continue
            name, other = law.parameters[floor].name, law.parameters[i].name
            term = acts[acts[:, i]].any(0)
            lost = [
                p.name for p, own in zip(law.parameters, term, strict=True) if own and p.kind == "amplitude"
            ]
            reason = f"it is determined only together with {name}"
            why |= dict.fromkeys((other, *lost), reason)
            why[name] = f"it is determined only together with {other}"
    return why


def _compared(law: Law) -> list[int]:
    """Return the parameters whose trade-offs do not depend on units: all but amplitudes other than floors."""
    return [i for i, p in enumerate(law.parameters) if p.kind != "amplitude" or p.name in FLOORS]


def _only_together(law: Law, terms: Terms, fitted: Array) -> list[list[int]]:
    """Return groups of parameters of one term, with its amplitudes, that the points cannot tell apart.

    Their multiple correlation is that of the term alone. A floor and an exponent are therefore not compared:
    they trade off in most fits, and their resamples cover nevertheless.
    """
    groups = []
    for share, slopes in zip(*_terms_apart(law, terms, fitted), strict=True):
        columns = share[:, None] * slopes
        if not np.isfinite(columns).all():
            continue
        size = np.linalg.norm(columns, axis=0)
        acting = np.flatnonzero(size > ABSENT * size.max()).tolist()
        own = [i for i in acting if law.parameters[i].kind != "amplitude"]
        amplitudes = [i for i in acting if law.parameters[i].kind == "amplitude"]
        scaled = columns / np.maximum(size, 1e-300)
        without = _left(scaled[:, own], scaled[:, amplitudes])
        limit = np.sqrt(1 - TRADE_OFF**2) * without
        within = [
            _left(scaled[:, [i]], scaled[:, [k for k in acting if k != i]])[0] if len(own) > 1 else np.inf
            for i in own
        ]
        together = [i for i, left, most in zip(own, within, limit, strict=True) if left < most]
        if len(together) > 1:
            groups.append([*together, *amplitudes])
    return groups


def _left(columns: Array, others: Array) -> Array:
    """Return the length of what each of `columns` has outside the space of the `others`."""
    if not others.shape[1]:
        return np.asarray(np.linalg.norm(columns, axis=0))
    return np.asarray(
        np.linalg.norm(columns - others @ np.linalg.lstsq(others, columns, rcond=None)[0], axis=0)
    )


def _terms_apart(law: Law, terms: Terms, fitted: Array) -> tuple[Array, Array]:
    """Return the share of every term in the loss [terms, points] and the slopes of its log [.., parameters].

    A function returns the log of the whole loss. Its terms are what is left when all amplitudes but one
    vanish.
    """
    if not law.function:
        logs = log_terms(terms, fitted[None])[0][0]
        share = np.exp(logs - logs.max(0))
        return share / share.sum(0), slopes_at(terms, fitted)
    places = [i for i, parameter in enumerate(law.parameters) if parameter.kind == "amplitude"]
    rows = np.repeat(fitted[None], len(places), 0)
    for row, kept in zip(rows, places, strict=True):
        for i in places:
            if i != kept:
                row[i] = LOG_BOUNDS[0] if law.parameters[i].log else 0.0
    if not places:
        return np.empty((0, 0)), np.empty((0, 0, len(fitted)))
    with np.errstate(all="ignore"):
        logs, slopes = log_terms(terms, rows)
    return np.exp(logs[:, 0] - log_terms(terms, fitted[None])[0][0, 0]), slopes[:, 0]


def fixed_by_bounds(law: Law, slopes: Array, at_bound: Mask) -> Mask:
    """Mark the parameters that a bound determines, not the data [rows, parameters].

    These are the parameters at a bound and those that only act through terms whose amplitude is at a bound:
    the exponent of a term that vanished is not identified.

    Parameters
    ----------
    slopes : of the log terms [terms, points, parameters].
    at_bound : which parameters are at a bound [rows, parameters].
    """
    acts = slopes != 0
    amplitudes = np.array([parameter.kind == "amplitude" for parameter in law.parameters])
    fixed = at_bound.copy()
    for pattern in np.unique(at_bound[:, amplitudes], axis=0):
        lost = acts[..., amplitudes][..., pattern].any(-1, keepdims=True)
        only = ~(acts & ~lost).any((0, 1))
        fixed[(at_bound[:, amplitudes] == pattern).all(1)] |= only
    return fixed


def held_by_bounds(law: Law, slopes: Array, fitted: Array, at_bound: Mask) -> Mask:
    """Mark the parameters without an error of their own [parameters]: at a bound, or of vanished terms alone.

    A term with its amplitude at the upper bound acts: its exponent is so large that the points ask for more.
    Its other parameters are not identified, but what they leave open is part of the errors of the rest.
    """
    return np.asarray(at_bound | fixed_by_bounds(law, slopes, (at_bound & (fitted < law.bounds[1]))[None])[0])


def settle_vanished(law: Law, terms: Terms, fit: Fit) -> Fit:
    """Return a fit of one row with vanished terms at their bounds and what acts in them alone at a start.

    Nothing holds them where the descent left them: rounding decides that, and differs between processors.
    """
    theta = fit.parameters[0]
    logs = log_terms(terms, theta[None])[0][0]
    gone = (logs - np.logaddexp.reduce(logs, 0) < LOG_VANISHED).all(1)
    acts = (slopes_at(terms, theta) != 0).any(1)  # [terms, parameters]
    alone = acts[gone].any(0) & ~acts[~gone].any(0)
    amplitudes = np.array([parameter.kind == "amplitude" and parameter.log for parameter in law.parameters])
    starts = np.array([parameter.fitted_start for parameter in law.parameters])
    settled = np.where(alone, np.where(amplitudes, law.bounds[0], starts), theta)
    at_bound = np.where(alone, amplitudes, fit.at_bound[0])
    return replace(fit, parameters=settled[None], at_bound=at_bound[None])


def normal_matrix(jacobian: Array) -> tuple[Array, Array]:
    """Return the normal matrix of a Jacobian [points, parameters] with unit diagonal, and its scale."""
    scale = np.sqrt(np.maximum(np.square(jacobian).sum(0), 1e-300))
    scaled = jacobian / scale
    return scaled.T @ scaled, scale


def log_slopes(terms: Terms, fitted: Array) -> Array:
    """Return the slopes of the log loss in the parameters at a fit [points, parameters]."""
    logs = log_terms(terms, fitted[None])[0][0]
    share = np.exp(logs - logs.max(0))
    return np.asarray(np.einsum("tn,tnp->np", share / share.sum(0), slopes_at(terms, fitted)))


def slopes_at(terms: Terms, fitted: Array) -> Array:
    """Return the slopes of the log terms at a fit [terms, points, parameters]."""
    slopes = log_terms(terms, fitted[None])[1]
    return slopes[0] if slopes.ndim == 4 else slopes
