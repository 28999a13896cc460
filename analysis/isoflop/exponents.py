"""The exponents of results that hold groups of isoFLOP laws: one short path to each, and a frame of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.isoflop.estimator import DEFAULT_ESTIMATOR
from analysis.isoflop.group import GroupFit
from analysis.serialize import Result, estimates_frame

SHORT = {"recurrence": "mean_recurrence", "N": "params", "D": "tokens"}


class Exponent(NamedTuple):
    """An exponent with its interval; None is an open end."""

    value: float
    low: float | None
    high: float | None


class IsoflopResult(Result):
    """A result with groups of isoFLOP laws."""

    def fitted_groups(self) -> Sequence[GroupFit]:
        """Return the groups."""
        raise NotImplementedError

    def exponent(
        self, quantity: str, *, estimator: str = DEFAULT_ESTIMATOR, group: str | None = None
    ) -> Exponent:
        """Return the exponent of a quantity's optimum over compute: recurrence, params or tokens.

        Raises ValueError where `group` is needed or unknown, and for a refused law, with the reason.
        """
        labels = [each.label for each in self.fitted_groups()]
        if group is None and len(labels) == 1:
            group = labels[0]
        if group not in labels:
            raise ValueError(
                f"group={group!r}: choose {' or '.join(map(repr, labels)) or 'none, as none is'}"
            )
        laws = self.fitted_groups()[labels.index(group)].estimator(estimator).laws
        law = {str(name): each for name, each in laws.items()}.get(SHORT.get(quantity, quantity))
        if law is None:
            raise ValueError(f"quantity={quantity!r} is unknown: choose {' or '.join(laws)}")
        if law.exponent is None:
            raise ValueError(f"{estimator} gives no exponent of {quantity}: {law.refusal}")
        return Exponent(law.exponent, law.exponent_low, law.exponent_high)

    def to_frame(self) -> pd.DataFrame:
        """Return the exponents by group, quantity and estimator: value, low, high and refusal."""
        rows = (
            (*key, law.exponent, law.exponent_low, law.exponent_high, law.refusal)
            for group in self.fitted_groups()
            for fit in group.estimators
            for quantity, law in fit.laws.items()
            for key in [(group.label, str(quantity), fit.name)]
        )
        return estimates_frame(("group", "quantity", "estimator"), rows)

    @property
    def cov(self) -> pd.DataFrame:
        """Return the covariance of the exponents over the resamples that all estimators share."""
        drawn = {
            (group.label, str(quantity), fit.name): pd.Series(law.draws[:, 1])
            for group in self.fitted_groups()
            for fit in group.estimators
            for quantity, law in fit.laws.items()
            if law.exponent is not None
        }
        return independent_groups(pd.DataFrame(drawn).cov())

    @property
    def resid(self) -> pd.Series:
        """Return loss minus the curve of the default estimator of every run on an isoFLOP curve it fits."""
        parts: dict[tuple[str, str], float] = {}
        for group in self.fitted_groups():
            cells, curve = group.cells, group.estimator().curve
            if curve is None:
                continue
            for k in group.inputs.usable:
                at = cells.budget == k
                fitted = curve(cells.variable, k, cells.values[at])
                names = group.inputs.run_ids[cells.rows[at]]
                parts |= {
                    (group.label, name): gap
                    for name, gap in zip(names, cells.loss_nats[at] - fitted, strict=True)
                }
        index = pd.MultiIndex.from_tuples(list(parts), names=["group", "run_id"]) if parts else None
        return pd.Series(list(parts.values()), index=index, name="residual", dtype=float)


def independent_groups(covariance: pd.DataFrame) -> pd.DataFrame:
    """Return a covariance by group, and others, with zeros between different groups."""
    labels = covariance.index.get_level_values(0).to_numpy() if len(covariance) else np.empty(0)
    return covariance.mask(labels[:, None] != labels[None], 0.0)
