"""What is published about Parcae (arXiv 2604.12946), and what those numbers support.

Facts are small tables under `published/`, one source per row. No loss of a single isoFLOP run is published,
so that nothing here is a refit: `claims` holds the statements against printed tables and plain arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.config import Array
from analysis.isoflop.geometry import FLOPS_PER_PARAM, Geometry, IsoflopPath, log_optimum

FOLDER = Path(__file__).parent
TABLES = (
    "sizes",
    "flops_per_token",
    "core",
    "exponents",
    "training_law",
    "test_time",
    "unified",
    "end_to_end",
    "reproduction",
    "depths",
    "stability",
)
ACCOUNTINGS = ("paper", "released")
COUNTS = {
    "all": ("n_embedding", "n_value_embedding"),
    "no token embedding": ("n_value_embedding",),
    "non-embedding": (),
    "FLOPs per token over six": None,  # as the released accounting counts them
}
SWEPT = (2.0, 12.0)  # mean recurrences of the published grid


def table(name: str) -> pd.DataFrame:
    """Return one table of published facts."""
    return pd.read_csv(FOLDER / f"{name}.csv")


def _row(name: str, size: str) -> dict[str, Any]:
    frame = table(name)
    return {str(key): value for key, value in frame[frame["size"] == size].iloc[0].items()}


def shape(size: str, accounting: str, count: str = "all") -> Geometry:
    """Return N(mu) under one definition and f(mu, mu / 2) under one accounting of a published size."""
    row = _row("sizes", size)
    flops = table("flops_per_token")
    mine = flops[(flops["size"] == size) & (flops["accounting"] == accounting)]
    depths = zip(mine["mean_recurrence"], mine["backprop_depth"], strict=True)
    values = dict(zip(depths, 1e6 * mine["mflop_per_token"].to_numpy(float), strict=True))
    loop = values[2, 1] - values[1, 1]
    backprop = values[4, 2] - values[2, 1] - 2 * loop
    fixed, slope = float(values[1, 1] - loop - backprop), float(loop + backprop / 2)
    counted = COUNTS[count]
    if counted is None:
        released = fixed if accounting == "released" else shape(size, "released").flops_fixed
        static, looped = released / FLOPS_PER_PARAM, slope / FLOPS_PER_PARAM
    else:
        static, looped = float(row["n_other"] + sum(row[name] for name in counted)), float(row["n_core"])
    return Geometry(
        static_params=static,
        looped_params=looped,
        flops_fixed=fixed,
        flops_slope=slope,
        backprop_share=0.5,
    )


def law_loss(size: str, params: Array, tokens: Array) -> Array:
    """Return the published training law's loss in nats."""
    law = _row("training_law", size)
    return np.asarray(law["E"] + law["A"] * params ** -law["a"] + law["B"] * tokens ** -law["b"])


def law_optima(size: str, accounting: str, count: str, flops: Array | None = None) -> Array:
    """Return the mean recurrence that the published law prefers at budgets, 0 for none.

    Without `flops` at the published budgets.
    """
    law = _row("training_law", size)
    curve = IsoflopPath(
        shape=shape(size, accounting, count),
        budgets_flops=budgets(size) if flops is None else flops,
        middle=float(np.log(SWEPT).mean()),
    )
    exponents = np.array([[law["a"], law["b"]]])
    amplitudes = np.array([[[law["E"], law["a"] * law["A"], law["b"] * law["B"]]]])
    return np.asarray(np.exp(log_optimum(curve, exponents, amplitudes, (0.0, 0.0))[0]))


def budgets(size: str) -> Array:
    """Return the published budgets of a size in FLOPs."""
    core = table("core")
    return core[core["size"] == size]["budget_flops"].to_numpy(float)


def slope(flops: Array, values: Array) -> float:
    """Return the least-squares exponent of positive values over budgets."""
    used = values > 0
    return float(np.polyfit(np.log(flops[used]), np.log(values[used]), 1)[0])


def published_recurrence(size: str, flops: Array) -> Array:
    """Return the published power law of the optimal recurrence."""
    row = _row("exponents", size)
    rise = (flops / row["reference_flops"]) ** row["recurrence_exponent"]
    return np.asarray(row["recurrence_at_reference"] * rise)


def implied_tokens_exponent(size: str, accounting: str) -> float:
    """Return the exponent of D* = C / f(mu*) under the published law of mu*."""
    flops = budgets(size)
    return slope(flops, shape(size, accounting).tokens(published_recurrence(size, flops), flops))


def core_differences() -> pd.DataFrame:
    """Return looped minus fixed Core per row, with the printed spreads added in squares."""
    core = table("core")
    differences = core[["size", "budget_flops", "mean_recurrence"]].copy()
    for name in ("core", "extended"):
        differences[name] = (core[f"looped_{name}"] - core[f"fixed_{name}"]).round(6)
        differences[f"{name}_sd"] = np.hypot(core[f"looped_{name}_sd"], core[f"fixed_{name}_sd"])
    return differences


def held_out_errors() -> pd.DataFrame:
    """Return the law's error at the end-to-end models (mu = 8) in per cent, by definition of N."""
    rows = []
    for size in table("sizes")["size"].astype(str):
        model = _row("end_to_end", size)
        seen, tokens = float(np.log(model["looped_perplexity"])), np.array([model["tokens"]])
        for count in COUNTS:
            params = shape(size, "paper", count).params(np.array([8.0]))
            predicted = float(law_loss(size, params, tokens)[0])
            rows.append((size, count, predicted, seen, 100 * abs(predicted / seen - 1)))
    columns = ["size", "parameters counted", "predicted_nats", "seen_nats", "error_percent"]
    return pd.DataFrame(rows, columns=columns)
