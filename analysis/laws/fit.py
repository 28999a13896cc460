"""Fit any law: starts by projection, one batched minimisation, a certificate and bootstrap intervals."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import Array
from analysis.laws.function_law import Function, as_law
from analysis.laws.identification import identification, settle_vanished
from analysis.laws.intervals import describe_resampling, intervals, linear_covariance, student
from analysis.laws.law import Data, Law
from analysis.laws.newton import Fit, row_chunks
from analysis.laws.objective import (
    Objective,
    Terms,
    best_fit,
    evaluation_bytes,
    log_terms,
    minimise,
    minimise_resamples,
    minimise_scaled,
    predict,
)
from analysis.laws.result import Certificate, LawFit, as_floats, columns
from analysis.stats.bootstrap import resampling_weights
from analysis.tables.schema import TableError

STARTS = 12
MAX_GRID = 512  # combinations of starting values that are tried


def fit_law(
    law: str | Law | Function,
    data: Data | pd.DataFrame,
    losses: Any,
    *,
    delta: float | None = None,
    log_loss: bool = True,
    bootstrap: int = 0,
    resampling: str = "pairs",
    labels: np.ndarray[Any, Any] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> LawFit:
    """Fit a law by minimising the sum of Huber costs of the log loss.

    Parameters
    ----------
    law : a name in `LAWS`, a `Law`, or a function of the user's own (see `as_law`).
    data : the law's columns [points] (see `Law.columns`).
    losses : [points] in nats.
    delta : of the Huber cost; by default 1.345 times the scatter of the residuals, which is estimated with
        the law. 1e-3 is that of published fits, inf is half the squared error.
    log_loss : fit residuals of the log loss; otherwise of the loss itself.
    bootstrap : resamples behind the intervals; 0 for none.
    resampling : "pairs", "stratified" or "block", the latter two by `labels` [points].

    Returns
    -------
    The fit. Rows are sorted first, so it does not depend on their order.

    Raises
    ------
    TableError : the law is unknown, a column is missing, a value is not positive and finite, or there are too
        few points.

    Notes
    -----
    For the surface this is approach 3 of Hoffmann et al. 2022. Starts come from a grid of exponents with the
    amplitudes projected out (variable projection, Golub and Pereyra 1973).
    """
    law = as_law(law)
    given, observed = columns(law, data), as_floats("loss", losses)
    _check(law, given, observed)
    order = np.lexsort([*given.values(), observed])
    losses = observed[order]
    terms = law.terms({name: column[order] for name, column in given.items()})
    objective, tried = _minimise(law, terms, losses, delta, log_loss)
    point = settle_vanished(law, terms, best_fit(objective, losses, tried, law.bounds))
    fitted = point.parameters[0]
    draws, few = np.empty((0, len(fitted))), None
    if bootstrap:
        ordered = None if labels is None else np.asarray(labels)[order]
        blocks = len(np.unique(ordered)) if resampling == "block" and ordered is not None else 0
        few = student(len(losses), len(fitted), blocks)
        weights = resampling_weights(resampling, len(losses), ordered, bootstrap, seed)
        repeated = np.broadcast_to(losses, weights.shape)
        draws = minimise_resamples(objective, repeated, fitted, law.bounds, weights).parameters
    covariance = linear_covariance(law, objective, losses, point)
    ends = intervals(law, terms, fitted, draws, few, confidence, covariance) if bootstrap else {}
    known = identification(law, terms, point, ends, covariance)
    return LawFit(
        law=law.name,
        formula=law.formula,
        source=law.source,
        points=len(losses),
        delta=objective.delta,
        objective=float(point.objective[0]),
        parameters={name: float(value[0]) for name, value in law.public(fitted).items()},
        units={parameter.name: parameter.unit for parameter in law.parameters},
        intervals=ends,
        resampling=describe_resampling(bootstrap, resampling, seed, few),
        certificate=_certificate(law, tried, point),
        not_identified=known.not_identified,
        undetermined=known.phrases,
        rms_nats=float(np.sqrt(np.mean((predict(terms, fitted[None])[0] - losses) ** 2))),
        few=few,
        draws=draws,
        fitted=fitted,
        covariance=covariance,
        model=law,
        data=given,
        losses=observed,
    )


def _minimise(
    law: Law, terms: Terms, losses: Array, delta: float | None, log_loss: bool
) -> tuple[Objective, Fit]:
    """Return the objective, and its minima from several starts."""
    starts = projected_starts(law, terms, losses)
    if delta is None:
        return minimise_scaled(terms, losses, starts, law.bounds, log_loss)
    objective = Objective(terms=terms, delta=delta, log_loss=log_loss)
    return objective, minimise(objective, np.repeat(losses[None], len(starts), 0), starts, law.bounds)


def _certificate(law: Law, tried: Fit, point: Fit) -> Certificate:
    """Return the certificate of the best of several starts, `point`."""
    return Certificate(
        gradient=float(point.gradient[0]),
        curvature=float(point.curvature[0]),
        starts=len(tried.objective),
        starts_agreeing=tried.agreeing,
        at_bound=tuple(
            parameter.name for parameter, at in zip(law.parameters, point.at_bound[0], strict=True) if at
        ),
    )


def _check(law: Law, values: dict[str, Array], losses: Array) -> None:
    for name, column in {**values, "loss": losses}.items():
        any_sign = name == "params_looped" or (law.function and name != "loss")
        wrong = ~(np.isfinite(column) & ((column > 0) | any_sign))
        if wrong.any():
            rule = "finite" if any_sign else "positive and finite"
            raise TableError(f"column {name} holds {column[wrong][0]:g}: values must be {rule}")
    if len(losses) <= len(law.parameters):
        raise TableError(
            f"{len(losses)} points are too few for the {len(law.parameters)} parameters of the {law.name} law"
        )


def projected_starts(law: Law, terms: Terms, losses: Array) -> Array:
    """Return starts [starts, parameters]: the best exponents of a grid with least-squares amplitudes.

    A negative amplitude has no logarithm and is replaced by a small share of the loss.
    """
    places = [i for i, parameter in enumerate(law.parameters) if parameter.kind == "amplitude"]
    starts = _grid(law, places)
    errors = np.full(len(starts), np.inf)
    row_bytes = evaluation_bytes(Objective(terms=terms), starts[:1])
    for rows in row_chunks(len(starts), row_bytes):
        starts[rows], errors[rows] = _projected(law, terms, losses, starts[rows], places)
    usable = np.flatnonzero(np.isfinite(errors))
    if not len(usable):
        raise TableError(f"the {law.name} law gives no finite loss at any start: give starts and bounds")
    return starts[usable][np.argsort(errors[usable], kind="stable")[:STARTS]]


def _grid(law: Law, places: list[int]) -> Array:
    """Return the combinations of starting values [rows, parameters] with amplitudes of one at `places`."""
    others = [i for i in range(len(law.parameters)) if i not in places]
    grid = np.array(list(product(*(law.parameters[i].grid for i in others)))).reshape(-1, len(others))
    if len(grid) > MAX_GRID:
        grid = np.random.default_rng(0).permutation(grid)[:MAX_GRID]
    theta = np.zeros((len(grid), len(law.parameters)))
    logs_of = [law.parameters[i].log for i in others]
    theta[:, others] = np.where(logs_of, np.log(np.where(logs_of, grid, 1.0)), grid)
    theta[:, places] = [0.0 if law.parameters[i].log else 1.0 for i in places]
    return theta


def _projected(law: Law, terms: Terms, losses: Array, theta: Array, places: list[int]) -> tuple[Array, Array]:
    """Return `theta` [rows, parameters] with least-squares amplitudes, and its squared errors [rows]."""
    with np.errstate(all="ignore"):
        logs, slopes = log_terms(terms, theta)
        if not places:
            return theta, np.square(logs.sum(1) - np.log(losses)).sum(1)
        parts = np.exp(logs)
        design = np.stack([(parts * slopes[..., i]).sum(1) for i in places], -1)
    finite = np.isfinite(design).all((1, 2))
    theta, parts, design = theta.copy(), parts[finite], design[finite]
    rest = parts.sum(1) - design.sum(2) if law.function else np.zeros(design.shape[:2])
    scale = np.maximum(np.abs(design).max(1), 1e-300)
    design /= scale[:, None]
    rows = [
        np.linalg.lstsq(each, losses - other, rcond=None)[0] for each, other in zip(design, rest, strict=True)
    ]
    positive = np.array([law.parameters[i].log for i in places], bool)
    solved = np.array(rows).reshape(-1, len(places))
    solved = np.where(positive, np.maximum(solved, 1e-3 * losses.mean()), solved)
    predicted = np.maximum((design @ solved[..., None])[..., 0] + rest, 1e-3 * losses.min())
    errors = np.full(len(theta), np.inf)
    errors[finite] = np.square(np.log(predicted) - np.log(losses)).sum(1)
    logs_of = np.log(np.where(positive, solved, 1.0)) - np.log(scale)
    theta[np.ix_(finite, places)] = np.where(positive, logs_of, solved / scale)
    return theta, errors
