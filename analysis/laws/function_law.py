"""A law from a Python function: columns are its positional arguments, parameters its keywords.

    def law(params, tokens, *, E, A, alpha, B, beta):
        return E + A * params**-alpha + B * tokens**-beta

    fit_law(law, table, losses)

Parameters in which the function is linear are found by evaluating it. They are amplitudes: their starts are
computed, and they are positive unless `bounds` says otherwise.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from analysis.config import Array
from analysis.laws.law import Data, Law, Parameter, Term
from analysis.laws.registry import LAWS
from analysis.tables.schema import TableError

Function = Callable[..., Any]
Bounds = tuple[float, float]
POSITIVE: Bounds = (0.0, np.inf)  # bounds of an amplitude
FREE: Bounds = (-10.0, 10.0)  # bounds of any other parameter
GRID = (-1.0, -0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 1.0)  # starts of a parameter without any
AROUND = np.array([0.5, 1.0, 2.0])  # times a start
PROBES = 3  # evaluations that must agree
ALSO_KNOWN_AS = {
    "chinchilla": "surface",
    "hoffmann": "surface",
    "approach_3": "surface",
    "kaplan": "power_law",
    "gadre": "overtraining",
    "isodepth": "iso_depth",
    "exponential": "saturating",
}


def as_law(
    law: str | Law | Function,
    *,
    starts: Mapping[str, Any] | None = None,
    bounds: Mapping[str, Bounds] | None = None,
    units: Mapping[str, str] | None = None,
) -> Law:
    """Return a law by its name, or from a function of the user's own.

    Parameters
    ----------
    law : a name in `LAWS`, a `Law`, or a function `law(column, ..., *, parameter, ...)` of arrays that
        returns the loss. The default of a keyword is its start.
    starts : one value, or several, for parameters that are no amplitudes.
    bounds : (0, inf) for amplitudes and (-10, 10) for other parameters unless given. A parameter whose lower
        bound is 0 or more is fitted as its log.
    units : for printing.

    Raises
    ------
    TableError : the name is unknown; the message holds the closest names.
    ValueError : the function lacks columns or parameters, or an option names none of them.
    """
    if isinstance(law, Law):
        return law
    if not isinstance(law, str):
        return _from_function(law, dict(starts or {}), dict(bounds or {}), dict(units or {}))
    if law in LAWS:
        return LAWS[law]
    key = law.lower()
    close = [ALSO_KNOWN_AS[key]] if key in ALSO_KNOWN_AS else difflib.get_close_matches(key, LAWS, 2)
    hint = "it is" if key in ALSO_KNOWN_AS else "the closest is"
    hint = f"{hint} {' or '.join(close)} here, of" if close else "choose"
    raise TableError(f"law={law} is unknown: {hint} isoflop, {', '.join(LAWS)}")


def _from_function(
    function: Function, starts: dict[str, Any], bounds: dict[str, Bounds], units: dict[str, str]
) -> Law:
    name = getattr(function, "__name__", type(function).__name__)
    arguments = inspect.signature(function).parameters.values()
    columns = tuple(a.name for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD))
    keywords = {a.name: a.default for a in arguments if a.kind == a.KEYWORD_ONLY}
    if not columns or not keywords:
        raise ValueError(f"{name} needs columns before a star and parameters after it: {name}(x, *, a, b)")
    for option, given in (("starts", starts), ("bounds", bounds), ("units", units)):
        if unknown := [key for key in given if key not in keywords]:
            raise ValueError(
                f"{option} names {unknown[0]}; the parameters of {name} are {', '.join(keywords)}"
            )
    starts = {key: value for key, value in keywords.items() if value is not inspect.Parameter.empty} | starts
    grids = {key: tuple(np.atleast_1d(np.asarray(value, float))) for key, value in starts.items()}
    linear = _amplitudes(function, columns, {key: grids.get(key, GRID) for key in keywords})
    parameters = tuple(
        _parameter(key, key in linear, bounds.get(key), grids.get(key), units.get(key, ""))
        for key in keywords
    )
    law = Law(
        name=name,
        formula=f"{name}({', '.join(columns)}; {', '.join(keywords)})",
        source="a function of the user's own",
        columns=columns,
        parameters=parameters,
        log_terms=partial(_log_of, function, columns),
        function=True,
    )
    return law if _is_analytic(law) else replace(law, complex_step=False)


def _parameter(
    name: str, linear: bool, bounds: Bounds | None, grid: tuple[float, ...] | None, unit: str
) -> Parameter:
    low, high = bounds or (POSITIVE if linear else FREE)
    if grid is not None and len(grid) == 1:
        grid = tuple(grid[0] * AROUND)
    elif grid is None:
        grid = GRID
    inside = tuple(float(np.clip(value, low, high)) for value in grid)
    if grid is GRID:
        inside = tuple(value for value in GRID if low < value < high) or (float(np.mean([low, high])),)
    return Parameter(
        name=name,
        kind="amplitude" if linear else "shape",
        unit=unit,
        bounds=(low, high),
        log=low >= 0,
        grid=inside,
    )


def _log_of(function: Function, columns: tuple[str, ...], data: Data, **values: Any) -> tuple[Term, ...]:
    """Return the log of the function as a single term without linear parameters."""
    with np.errstate(all="ignore"):
        return ({None: np.log(_call(function, [np.asarray(data[name]) for name in columns], values))},)


def _call(function: Function, columns: list[Array], values: dict[str, Any]) -> Any:
    """Call the function with parameters [rows, 1], or row by row where it takes numbers only."""
    try:
        return function(*columns, **values)
    except (TypeError, ValueError):
        if not any(np.size(value) > 1 for value in values.values()):
            values = {name: np.ravel(value)[0] for name, value in values.items()}
            return np.atleast_2d(function(*columns, **values))
        rows = max(np.size(value) for value in values.values())
        each = [{name: np.ravel(value)[row] for name, value in values.items()} for row in range(rows)]
        return np.stack([np.broadcast_to(function(*columns, **one), np.shape(columns[0])) for one in each])


def _amplitudes(
    function: Function, columns: tuple[str, ...], grids: dict[str, tuple[float, ...]]
) -> set[str]:
    """Return the parameters in which the function is linear, all at once.

    A parameter joins where doubling it, together with those that joined before, doubles its part exactly.
    """
    rng = np.random.default_rng(0)
    linear: set[str] = set()
    for name in grids:
        agree = 0
        for _ in range(PROBES):
            data = [rng.uniform(1.5, 9.0, 4) for _ in columns]
            values: dict[str, Any] = {key: rng.choice(grid) for key, grid in grids.items()}
            scaled = {key: rng.uniform(0.5, 1.5) for key in linear | {name}}
            with np.errstate(all="ignore"):
                zero, one, two = (
                    np.asarray(_call(function, data, values | {k: v * times for k, v in scaled.items()}))
                    for times in (0.0, 1.0, 2.0)
                )
            size = np.abs(one) + np.abs(two) + np.abs(zero)
            agree += bool(np.all(np.abs(two - 2 * one + zero) <= 1e-12 * size) and np.isfinite(size).all())
        if agree == PROBES:
            linear.add(name)
    return linear


def _is_analytic(law: Law) -> bool:
    """Return True if derivatives by complex step equal those by differences."""
    rng = np.random.default_rng(1)
    data = {name: rng.uniform(1.5, 9.0, 4) for name in law.columns}
    theta = law.fitted({p.name: 1.0 if p.kind == "amplitude" else p.grid[0] for p in law.parameters})[None]
    try:
        exact = law.terms(data)(theta)[1]  # type: ignore[operator]
    except TypeError:  # a function that takes no complex numbers
        return False
    differences = replace(law, complex_step=False).terms(data)(theta)[1]  # type: ignore[operator]
    return bool(np.allclose(exact, differences, rtol=1e-5, atol=1e-7, equal_nan=True))
