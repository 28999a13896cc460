"""Scaling laws as data: the columns that a law needs, its parameters with units, and its log terms.

The loss of a law is a sum of terms. Parameters of kind "amplitude" multiply a term and are projected out when
starts are computed. To add a law, write a function that returns its log terms and list it in
`analysis.laws.registry`; `fit_law` also takes a `Law` of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.config import Array
from analysis.laws.objective import Terms

Data = Mapping[str, Array]
Kind = Literal["amplitude", "exponent", "shape"]

SIZE_COLUMN = "size"  # of a joint law: number of each point's model size, counted from 1
AMPLITUDE_BOUNDS = (-40.0, 90.0)  # of the log


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a law; an amplitude is fitted as its log, an exponent or a shape as it is."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    bounds: tuple[float, float] = (0.0, 1.0)
    grid: tuple[float, ...] = ()  # values that starts are chosen from


@dataclass(frozen=True, kw_only=True)
class Law:
    """A scaling law: its formula, source, columns, parameters and log terms."""

    name: str
    formula: str
    source: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    terms: Callable[[Data], Terms]

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Return lower and upper bounds of the parameters in fitted form [parameters]."""
        low, high = zip(*(parameter.bounds for parameter in self.parameters), strict=True)
        return np.array(low, float), np.array(high, float)

    def public(self, fitted: Array) -> dict[str, Array]:
        """Return parameters by name [rows] from their fitted form [rows, parameters]."""
        columns = np.moveaxis(np.atleast_2d(fitted), -1, 0)
        return {
            parameter.name: np.exp(column) if parameter.kind == "amplitude" else column
            for parameter, column in zip(self.parameters, columns, strict=True)
        }

    def fitted(self, public: Mapping[str, float]) -> Array:
        """Return the fitted form [parameters] of parameters given by name."""
        return np.array(
            [
                np.log(public[parameter.name]) if parameter.kind == "amplitude" else public[parameter.name]
                for parameter in self.parameters
            ]
        )


def amplitude(name: str, unit: str, meaning: str) -> Parameter:
    """Return an amplitude."""
    return Parameter(name=name, kind="amplitude", unit=unit, meaning=meaning, bounds=AMPLITUDE_BOUNDS)


def exponent(
    name: str,
    meaning: str,
    grid: tuple[float, float, int] = (0.08, 1.6, 8),
    bounds: tuple[float, float] = (1e-3, 8.0),
) -> Parameter:
    """Return an exponent; `grid` is (first, last, count) of a geometric grid of starts."""
    values = tuple(float(value) for value in np.geomspace(*grid))
    return Parameter(name=name, kind="exponent", unit="1", meaning=meaning, bounds=bounds, grid=values)


def shape(name: str, meaning: str, grid: tuple[float, ...], bounds: tuple[float, float]) -> Parameter:
    """Return a parameter in which the log terms are not linear."""
    return Parameter(name=name, kind="shape", unit="1", meaning=meaning, bounds=bounds, grid=grid)


def features(points: int, parameters: int, entries: list[dict[int, Array | float]]) -> Array:
    """Return features [terms, points, parameters] from one {index of parameter: values} per term."""
    array = np.zeros((len(entries), points, parameters))
    for term, columns in enumerate(entries):
        for index, column in columns.items():
            array[term, :, index] = column
    return array


def joint_law(law: Law, sizes: Sequence[str]) -> Law:
    """Return `law` over several model sizes: each size has its own amplitudes, all share the exponents.

    Points need the column `size`, 1 for the first of `sizes`. Raises ValueError for a law with a shape
    parameter, in which log terms are not linear.

    Notes
    -----
    The paper (arXiv 2604.12946) fits each size apart, on few points and with parameters that N(mu) alone
    varies.
    """
    if any(parameter.kind == "shape" for parameter in law.parameters):
        raise ValueError(f"the {law.name} law has no joint form: a shape parameter is not linear in a term")
    amplitudes = [i for i, parameter in enumerate(law.parameters) if parameter.kind == "amplitude"]
    others = [i for i in range(len(law.parameters)) if i not in amplitudes]
    parameters: list[Parameter] = [
        replace(law.parameters[i], name=f"{law.parameters[i].name}[{size}]")
        for i in amplitudes
        for size in sizes
    ]

    def terms(data: Data) -> Array:
        base = np.asarray(law.terms(data))
        of_size = np.asarray(data[SIZE_COLUMN])[:, None] == np.arange(1, len(sizes) + 1)
        split = base[..., amplitudes, None] * of_size[:, None, :]
        return np.concatenate([split.reshape(*base.shape[:2], -1), base[..., others]], -1)

    return replace(
        law,
        name=f"{law.name}_joint",
        formula=f"{law.formula}, amplitudes by size",
        columns=(*law.columns, SIZE_COLUMN),
        parameters=(*parameters, *(law.parameters[i] for i in others)),
        terms=terms,
    )
