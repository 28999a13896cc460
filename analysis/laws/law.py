"""A scaling law: named parameters with units and bounds, and the logs of its terms.

The loss of a law is a sum of terms. The log of a term is linear in the log amplitude and in the exponents,
each written by its name: `{"A": 1.0, "alpha": -log_params}` is A N^-alpha. Parameters of the kind "shape" may
act in any way; they are passed to the function that returns the terms. To add a law, list it in
`analysis.laws.registry`. A function of the user's own becomes a law by `analysis.laws.function_law.as_law`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from analysis.config import Array
from analysis.laws.objective import Terms

Data = Mapping[str, Array]
Kind = Literal["amplitude", "exponent", "shape"]
# {name of a parameter: its slope in the log of the term}; None: the part of the log without a parameter
Term = Mapping[str | None, Any]

SIZE_COLUMN = "size"  # of a joint law: number of each point's model size, counted from 1
LOG_BOUNDS = (-40.0, 90.0)  # of the log of a positive parameter
STEP = 1e-20  # of the imaginary part: derivatives by complex step are exact up to rounding


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a law. An amplitude multiplies a term, a shape acts on it in any other way."""

    name: str
    kind: Kind
    unit: str = ""
    meaning: str = ""
    bounds: tuple[float, float] = (0.0, np.inf)
    log: bool = False  # fitted as its log
    grid: tuple[float, ...] = ()  # values that starts are chosen from

    @property
    def fitted_bounds(self) -> tuple[float, float]:
        """Return the bounds in fitted form."""
        if not self.log:
            return self.bounds
        with np.errstate(divide="ignore"):
            low, high = np.clip(np.log(self.bounds), *LOG_BOUNDS)
        return float(low), float(high)

    @property
    def fitted_start(self) -> float:
        """Return the middle of the grid of starts in fitted form; 0 of an amplitude, which has no grid."""
        if not self.grid:
            return 0.0
        middle = self.grid[len(self.grid) // 2]
        return float(np.log(middle)) if self.log else middle


@dataclass(frozen=True, kw_only=True)
class Law:
    """A scaling law: its formula, source, columns, parameters and log terms.

    `log_terms` is called with the data and, as keywords, the values of the shape parameters.
    """

    name: str
    formula: str
    source: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    log_terms: Callable[..., Sequence[Term]] = field(repr=False)
    function: bool = False  # `log_terms` takes every parameter, and columns any finite value
    complex_step: bool = True  # derivatives by shape parameters; otherwise by central differences

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Return lower and upper bounds of the parameters in fitted form [parameters]."""
        low, high = zip(*(parameter.fitted_bounds for parameter in self.parameters), strict=True)
        return np.array(low, float), np.array(high, float)

    def public(self, fitted: Array) -> dict[str, Array]:
        """Return parameters by name [rows] from their fitted form [rows, parameters]."""
        columns = np.moveaxis(np.atleast_2d(fitted), -1, 0)
        with np.errstate(over="ignore"):  # an end of an interval beyond the range of floats is open
            return {
                parameter.name: np.exp(column) if parameter.log else column
                for parameter, column in zip(self.parameters, columns, strict=True)
            }

    def fitted(self, public: Mapping[str, float]) -> Array:
        """Return the fitted form [parameters] of parameters given by name."""
        return np.array([np.log(public[p.name]) if p.log else public[p.name] for p in self.parameters])

    def loss(self, data: Data, **parameters: Any) -> Array:
        """Return the loss for parameters given by name, broadcast against the columns."""
        values = {
            p.name: np.log(parameters[p.name]) if p.log else parameters[p.name] for p in self.parameters
        }
        passed = {p.name: parameters[p.name] for p in self.parameters if self.function or p.kind == "shape"}
        logs = [
            sum(slope if name is None else slope * values[name] for name, slope in entry.items())
            for entry in self.log_terms(data, **passed)
        ]
        return np.asarray(sum(np.exp(log) for log in logs))

    def terms(self, data: Data) -> Terms:
        """Return the log terms at some points as the objective takes them (see `Terms`)."""
        names = [parameter.name for parameter in self.parameters]
        points = len(np.asarray(data[self.columns[0]]))
        shapes = [i for i, p in enumerate(self.parameters) if self.function or p.kind == "shape"]
        if shapes:
            return partial(_evaluate, self, data, shapes, points)
        entries = self.log_terms(data)
        array = np.zeros((len(entries), points, len(names)))
        for row, entry in zip(array, entries, strict=True):
            for name, slope in entry.items():
                row[:, names.index(str(name))] = slope
        return array


def _evaluate(law: Law, data: Data, shapes: list[int], points: int, theta: Array) -> tuple[Array, Array]:
    """Return the log terms [rows, terms, points] and their slopes [rows, terms, points, parameters]."""
    first = law.log_terms(data, **_shape_values(law, shapes, theta))
    slopes = np.zeros((len(theta), len(first), points, theta.shape[1]))
    logs = _assemble(law, first, theta, slopes)
    for place in shapes:
        if law.complex_step:
            moved = theta.astype(complex)
            moved[:, place] += 1j * STEP
            stepped = law.log_terms(data, **_shape_values(law, shapes, moved))
            slopes[..., place] = _assemble(law, stepped, moved, slopes).imag / STEP
        else:
            slopes[..., place] = _central(law, data, shapes, theta, place, slopes)
    return logs.real, slopes


def _central(law: Law, data: Data, shapes: list[int], theta: Array, place: int, slopes: Array) -> Array:
    step = 6e-6 * np.maximum(1.0, np.abs(theta[:, place]))
    ends = []
    for side in (1, -1):
        moved = theta.copy()
        moved[:, place] += side * step
        ends.append(_assemble(law, law.log_terms(data, **_shape_values(law, shapes, moved)), moved, slopes))
    return np.asarray((ends[0] - ends[1]).real / (2 * step[:, None, None]))


def _shape_values(law: Law, shapes: list[int], theta: Any) -> dict[str, Any]:
    """Return the values of the shape parameters [rows, 1] by name."""
    values = {}
    for place in shapes:
        parameter, value = law.parameters[place], theta[:, place, None]
        values[parameter.name] = np.exp(value) if parameter.log else value
    return values


def _assemble(law: Law, entries: Sequence[Term], theta: Any, slopes: Array) -> Any:
    """Return the log terms [rows, terms, points]; write the slopes of their linear parameters."""
    names = [parameter.name for parameter in law.parameters]
    logs = np.zeros(slopes.shape[:-1], dtype=theta.dtype)
    for term, entry in enumerate(entries):
        for name, slope in entry.items():
            if name is None:
                logs[:, term] += slope
                continue
            place = names.index(name)
            logs[:, term] += theta[:, place, None] * slope
            if np.isrealobj(slope):
                slopes[:, term, :, place] = slope
    return logs


def amplitude(name: str, unit: str, meaning: str) -> Parameter:
    """Return an amplitude."""
    return Parameter(name=name, kind="amplitude", unit=unit, meaning=meaning, log=True)


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


def joint_law(law: Law, sizes: Sequence[str]) -> Law:
    """Return `law` over several model sizes: each size has its own amplitudes, all share the exponents.

    Points need the column `size`, 1 for the first of `sizes`.

    Notes
    -----
    The paper (arXiv 2604.12946) fits each size apart, on few points and with parameters that N(mu) alone
    varies.
    """
    parameters: list[Parameter] = []
    amplitudes = [parameter for parameter in law.parameters if parameter.kind == "amplitude"]
    parameters += [replace(p, name=f"{p.name}[{size}]") for p in amplitudes for size in sizes]
    parameters += [p for p in law.parameters if p.kind != "amplitude"]
    return replace(
        law,
        name=f"{law.name}_joint",
        formula=f"{law.formula}, amplitudes by size",
        columns=(*law.columns, SIZE_COLUMN),
        parameters=tuple(parameters),
        log_terms=partial(_joint_terms, law, {p.name for p in amplitudes}, tuple(sizes)),
    )


def _joint_terms(law: Law, split: set[str], sizes: tuple[str, ...], data: Data, **shapes: Any) -> list[Term]:
    of_size = {size: np.asarray(data[SIZE_COLUMN]) == place for place, size in enumerate(sizes, start=1)}
    if law.function:
        own = {
            name: sum(shapes.pop(f"{name}[{size}]") * mask for size, mask in of_size.items())
            for name in split
        }
        return list(law.log_terms(data, **own, **shapes))
    terms: list[Term] = []
    for entry in law.log_terms(data, **shapes):
        apart: dict[str | None, Any] = {name: slope for name, slope in entry.items() if name not in split}
        for name in split & set(entry):
            apart |= {f"{name}[{size}]": entry[name] * mask for size, mask in of_size.items()}
        terms.append(apart)
    return terms
