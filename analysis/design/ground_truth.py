"""Laws that a study is simulated under: the published one, a fitted one, and departures from their form."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize_scalar

from analysis.config import Array, ParameterCount
from analysis.isoflop.geometry import Geometry, geometry
from analysis.published import parcae
from analysis.tables.schema import TableError

REACH = (0.1, 1000.0)  # mean recurrences between which an optimum is sought


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """L = E + ((A N^-alpha)^(1/g) + (B D^-beta)^(1/g))^g with N = static + looped mu^phi; nats.

    g = 1 and phi = 1 are the surface of PAPER (d); g other than 1 couples N and D (Kaplan et al. 2020), phi
    is the worth of a loop of the iso-depth law (arXiv 2604.21106).
    """

    name: str
    floor_nats: float
    amplitude_params: float
    alpha: float
    amplitude_tokens: float
    beta: float
    static_params: float
    looped_params: float
    coupling: float = 1.0
    loop_power: float = 1.0

    def loss(self, mean_recurrence: Array | float, tokens: Array | float) -> Array:
        """Return the loss in nats."""
        params = (
            self.static_params + self.looped_params * np.asarray(mean_recurrence, float) ** self.loop_power
        )
        by_params = self.amplitude_params * params**-self.alpha
        by_tokens = self.amplitude_tokens * np.asarray(tokens, float) ** -self.beta
        g = self.coupling
        return np.asarray(self.floor_nats + (by_params ** (1 / g) + by_tokens ** (1 / g)) ** g)

    def optimum(self, shape: Geometry, flops: float) -> float:
        """Return the compute-optimal mean recurrence at one budget, on the continuous isoFLOP curve."""
        low, high = np.log(REACH)
        minimum = minimize_scalar(
            lambda s: float(self.loss(np.exp(s), shape.tokens(np.exp(s), flops))),
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-10},
        )
        return float(np.exp(minimum.x))


def published(scale: str, runs: pd.DataFrame, count: ParameterCount) -> GroundTruth:
    """Return the published training law of a size (PAPER (d)), N counted as `count` says.

    Raises TableError for a size that has no published law.
    """
    size = _size(scale)
    table = parcae.table("training_law")
    row = table[table["size"] == size].iloc[0]
    return GroundTruth(
        name=f"the published {size} law (N {count.replace('_', ' ')})",
        floor_nats=float(row["E"]),
        amplitude_params=float(row["A"]),
        alpha=float(row["a"]),
        amplitude_tokens=float(row["B"]),
        beta=float(row["b"]),
        **_counted(runs, count),
    )


def at_published_optima(law: GroundTruth, scale: str, shape: Geometry) -> GroundTruth:
    """Return `law` with A scaled so that its optima have the geometric mean of the published ones.

    The printed coefficients and the printed optima of a size do not agree; `shape` gives the FLOP function.
    """
    core = parcae.table("core")
    mine = core[core["size"] == _size(scale)]
    budgets = mine["budget_flops"].to_numpy(float)
    target = float(np.log(mine["mean_recurrence"].to_numpy(float)).mean())

    def scaled(log_factor: float) -> GroundTruth:
        return replace(law, amplitude_params=law.amplitude_params * float(np.exp(log_factor)))

    def gap(log_factor: float) -> float:
        return float(np.mean(np.log([scaled(log_factor).optimum(shape, c) for c in budgets]))) - target

    log_factor = float(brentq(gap, -6.0, 6.0, xtol=1e-10))
    return replace(
        scaled(log_factor), name=f"{law.name}, A times {np.exp(log_factor):.3f} for the published optima"
    )


def _size(scale: str) -> str:
    sizes = [str(name) for name in parcae.table("training_law")["size"]]
    size = next((name for name in sizes if name.lower() in scale.lower()), None)
    if size is None:
        raise TableError(
            f"no law is published for {scale}, only for {' and '.join(sizes)}: set assume.law to the "
            f"laws.json that loopscale fit wrote for a sweep of {scale}; without one, train a pilot first"
        )
    return size


def fitted(path: Path, runs: pd.DataFrame, count: ParameterCount) -> GroundTruth:
    """Return the surface of a laws.json, or the law of `fit law=surface` or `law=iso_depth` as JSON.

    N is counted as the file's own settings say, else as `count` does. Raises TableError where the file holds
    no such law.
    """
    saved = json.loads(Path(path).read_text(encoding="utf-8"))
    if "groups" in saved:
        count = saved["config"]["parameter_count"]
        names = {str(runs[column].iloc[0]) for column in ("scale", "accounting")}
        mine = [group for group in saved["groups"] if {group["scale"], group["accounting"]} == names]
        if len(mine) != 1:
            raise TableError(
                f"{path}: {len(mine)} groups of {' and '.join(sorted(names))} FLOPs, one is needed"
            )
        estimators = {item["name"]: item for item in mine[0]["estimators"]}
        values = estimators["surface"]["parameters"]
        if not values:
            raise TableError(f"{path}: the surface was refused: {estimators['surface']['refusal']}")
    elif saved.get("law") in ("surface", "iso_depth"):
        values = saved["parameters"]
    else:
        raise TableError(f"{path}: no laws.json of loopscale fit, nor a law surface or iso_depth")
    return GroundTruth(
        name=f"the law of {path} (N {count.replace('_', ' ')})",
        floor_nats=values["E"],
        amplitude_params=values["A"],
        alpha=values["alpha"],
        amplitude_tokens=values["B"],
        beta=values["beta"],
        loop_power=values.get("phi", 1.0),
        **_counted(runs, count),
    )


def _counted(runs: pd.DataFrame, count: ParameterCount) -> dict[str, float]:
    shape = geometry(runs[runs["kind"] == "looped"], count)
    return {"static_params": shape.static_params, "looped_params": shape.looped_params}
