"""Fit any law: starts by projection, one batched minimisation, a certificate and bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from analysis import serialize
from analysis.config import Array
from analysis.format import number, span
from analysis.laws.intervals import Intervals, band, describe_resampling, intervals, slopes_at, undetermined
from analysis.laws.law import Data, Law
from analysis.laws.newton import Fit
from analysis.laws.objective import (
    Objective,
    Terms,
    log_terms,
    minimise,
    minimise_resamples,
    predict,
)
from analysis.laws.registry import LAWS
from analysis.serialize import HIDDEN
from analysis.stats.bootstrap import resampling_weights
from analysis.tables.schema import TableError

STARTS = 12
FLAT = 1e-6  # scaled gradient and curvature below this are zero; an optimum reaches 1e-10 or less


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Evidence for an optimum: scaled gradient, least scaled curvature, agreeing starts, active bounds."""

    gradient: float
    curvature: float
    starts: int
    starts_agreeing: int
    at_bound: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Return True if this is an optimum, not a point on a flat direction along which the fit still moved.

        Agreement of two starts suffices where the gradient is dominated by rounding, as it is for data
        without noise.
        """
        return (self.gradient < FLAT or self.starts_agreeing > 1) and self.curvature > -FLAT

    def __str__(self) -> str:
        return (
            f"{self.starts_agreeing} of {self.starts} starts agree, gradient {self.gradient:.1e}, "
            f"least curvature {self.curvature:.1e}"
        )


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """A fitted law: parameters with intervals, the certificate and what the data do not determine."""

    law: str
    formula: str
    source: str
    points: int
    delta: float
    objective: float
    parameters: dict[str, float]
    units: dict[str, str]
    intervals: Intervals
    resampling: str
    certificate: Certificate
    undetermined: tuple[str, ...]
    rms_nats: float
    blocks: int = field(default=0, repr=False, metadata=HIDDEN)  # resampled blocks, 0 for none
    draws: Array = field(repr=False, compare=False, metadata=HIDDEN)  # fitted form [resamples, parameters]
    fitted: Array = field(repr=False, compare=False, metadata=HIDDEN)
    model: Law = field(repr=False, compare=False, metadata=HIDDEN)

    def predict(self, data: Data | pd.DataFrame) -> Array:
        """Return the law's loss in nats at new points."""
        return predict(self.model.terms(columns(self.model, data)), self.fitted[None])[0]

    def band(self, data: Data | pd.DataFrame, confidence: float = 0.95) -> tuple[Array, Array]:
        """Return the pointwise interval of the law's loss at new points.

        It is Student's where few blocks were resampled. Raises ValueError for a law fitted with bootstrap=0.
        """
        terms = self.model.terms(columns(self.model, data))
        drawn = predict(terms, self.draws) if len(self.draws) else self.draws
        return band(predict(terms, self.fitted[None])[0], drawn, self.blocks, confidence)

    def summary(self) -> str:
        """Return the fit as plain text."""
        lines = [
            f"{self.law}: L = {self.formula} ({self.source}), {self.points} points, "
            f"rms {self.rms_nats:.4f} nats",
            f"  objective {self.objective:.6g} (Huber delta {self.delta:g}); {self.certificate}",
        ]
        if not self.certificate.holds:
            lines.append("  no optimum was reached: the points do not determine these parameters")
        for parameter in self.model.parameters:
            ends = f" {span(*self.intervals[parameter.name], 4)}" if parameter.name in self.intervals else ""
            value = number(self.parameters[parameter.name], 6)
            lines.append(f"  {parameter.name:>6} = {value}{ends} {parameter.unit}: {parameter.meaning}")
        lines.append(f"  intervals: {self.resampling}")
        return "\n".join([*lines, *(f"  {text}" for text in self.undetermined)])

    def to_dict(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the fit as JSON text."""
        return serialize.to_json(self)


def fit_law(
    law: str | Law,
    data: Data | pd.DataFrame,
    losses: Array,
    *,
    delta: float = 1e-3,
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
    law : a name in `LAWS`, or a `Law` of the user's own.
    data : the law's columns [points] (see `Law.columns`).
    losses : [points] in nats.
    delta : of the Huber cost; inf is half the squared error.
    log_loss : fit residuals of the log loss; otherwise of the loss itself.
    bootstrap : resamples behind the intervals; 0 for none.
    resampling : "pairs", "stratified" or "block", the latter two by `labels` [points].

    Returns
    -------
    The fit. Rows are sorted first, so it does not depend on their order.

    Raises
    ------
    TableError : a column is missing, a value is not positive and finite, or there are too few points.

    Notes
    -----
    For the surface this is approach 3 of Hoffmann et al. 2022. Starts come from a grid of exponents with the
    amplitudes projected out (variable projection, Golub and Pereyra 1973).
    """
    law = LAWS[law] if isinstance(law, str) else law
    values, losses = columns(law, data), np.asarray(losses, float)
    _check(law, values, losses)
    order = np.lexsort([*values.values(), losses])
    values, losses = {name: column[order] for name, column in values.items()}, losses[order]
    terms = law.terms(values)
    objective = Objective(terms=terms, delta=delta, log_loss=log_loss)
    starts = projected_starts(law, terms, losses)
    tried = minimise(objective, np.repeat(losses[None], len(starts), 0), starts, law.bounds)
    point = tried.row(tried.best)
    fitted = point.parameters[0]
    resampled, blocks = None, 0
    if bootstrap:
        ordered = None if labels is None else np.asarray(labels)[order]
        blocks = len(np.unique(ordered)) if resampling == "block" and ordered is not None else 0
        weights = resampling_weights(resampling, len(losses), ordered, bootstrap, seed)
        repeated = np.broadcast_to(losses, weights.shape)
        resampled = minimise_resamples(objective, repeated, fitted, law.bounds, weights)
    slopes = slopes_at(terms, fitted)
    return LawFit(
        law=law.name,
        formula=law.formula,
        source=law.source,
        points=len(losses),
        delta=delta,
        objective=float(point.objective[0]),
        parameters={name: float(value[0]) for name, value in law.public(fitted).items()},
        units={parameter.name: parameter.unit for parameter in law.parameters},
        intervals=intervals(law, slopes, point, resampled, blocks, confidence) if resampled else {},
        resampling=describe_resampling(bootstrap, resampling, seed, blocks),
        certificate=_certificate(law, tried),
        undetermined=undetermined(law, terms, point),
        rms_nats=float(np.sqrt(np.mean((predict(terms, fitted[None])[0] - losses) ** 2))),
        blocks=blocks,
        draws=resampled.parameters if resampled else np.empty((0, len(fitted))),
        fitted=fitted,
        model=law,
    )


def _certificate(law: Law, tried: Fit) -> Certificate:
    """Return the certificate of the best of several starts."""
    best = tried.best
    return Certificate(
        gradient=float(tried.gradient[best]),
        curvature=float(tried.curvature[best]),
        starts=len(tried.objective),
        starts_agreeing=tried.agreeing,
        at_bound=tuple(
            parameter.name for parameter, at in zip(law.parameters, tried.at_bound[best], strict=True) if at
        ),
    )


def columns(law: Law, data: Data | pd.DataFrame) -> dict[str, Array]:
    """Return the law's columns as float arrays, as products of integer columns may overflow."""
    missing = [name for name in law.columns if name not in data]
    if missing:
        raise TableError(
            f"the {law.name} law needs the columns {', '.join(law.columns)}; missing: {', '.join(missing)}"
        )
    return {name: np.asarray(data[name], dtype=float) for name in law.columns}


def _check(law: Law, values: dict[str, Array], losses: Array) -> None:
    for name, column in {**values, "loss": losses}.items():
        wrong = ~(np.isfinite(column) & (column > 0)) if name != "params_looped" else ~np.isfinite(column)
        if wrong.any():
            raise TableError(f"column {name} holds {column[wrong][0]:g}: values must be positive and finite")
    if len(losses) <= len(law.parameters):
        raise TableError(
            f"{len(losses)} points are too few for the {len(law.parameters)} parameters of the {law.name} law"
        )


def projected_starts(law: Law, terms: Terms, losses: Array) -> Array:
    """Return starts [starts, parameters]: the best exponents of a grid with least-squares amplitudes.

    A negative amplitude has no logarithm and is replaced by a small share of the loss.
    """
    places = [i for i, parameter in enumerate(law.parameters) if parameter.kind == "amplitude"]
    others = [i for i in range(len(law.parameters)) if i not in places]
    grid = np.array(list(product(*(law.parameters[i].grid for i in others))))
    theta = np.zeros((len(grid), len(law.parameters)))
    theta[:, others] = grid
    starts, errors = theta.copy(), np.full(len(grid), np.inf)
    for row in range(len(grid)):
        logs, slopes = log_terms(terms, theta[row : row + 1])
        slopes = slopes[0] if slopes.ndim == 4 else slopes
        design = np.stack([(np.exp(logs[0]) * slopes[..., i]).sum(0) for i in places], -1)
        scale = np.maximum(np.abs(design).max(0), 1e-300)
        solved = np.linalg.lstsq(design / scale, losses, rcond=None)[0]
        solved = np.maximum(solved, 1e-3 * losses.mean())
        errors[row] = np.square(np.log(design / scale @ solved) - np.log(losses)).sum()
        starts[row, places] = np.log(solved) - np.log(scale)
    return starts[np.argsort(errors, kind="stable")[:STARTS]]
