"""The tables of the study's page, written from laws.json, comparison.json and summary.json.

In README.md a table stands between `<!-- NAME ARGUMENT -->` and `<!-- end -->`; NAME is a function of this
module's TABLES.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.format import number

STUDY = Path(__file__).resolve().parent
COUNTED = {"all": "all", "no_token_embedding": "without token embedding", "non_embedding": "without tables"}
MARKED = re.compile(r"( *)<!-- (?P<name>\w+) ?(?P<argument>\w*) -->\n.*?<!-- end -->", re.DOTALL)


def fill(page: str) -> str:
    """Return the page with every marked table written anew."""

    def write(match: re.Match[str]) -> str:
        indent, name, argument = match[1], match["name"], match["argument"]
        header, *rows = TABLES[name](argument) if argument else TABLES[name]()
        mark = f"<!-- {' '.join(filter(None, (name, argument)))} -->"
        lines = [mark, "", _row(header), "|" + "---|" * len(header), *map(_row, rows), "", "<!-- end -->"]
        return "\n".join(f"{indent}{line}".rstrip() for line in lines)

    return MARKED.sub(write, page)


def optima(grid: str) -> list[list[str]]:
    """Tabulate the optima at every budget by shared shape."""
    rows = [["FLOPs", "µ*", "D*", "best loss, nats"]]
    found = _estimators(grid)["shared shape"]["optima"]
    for depth, tokens in zip(found["mean_recurrence"], found["tokens"], strict=True):
        flops = number(depth["budget_flops"])
        if depth["refusal"]:
            rows.append([flops, f"refused: {depth['refusal']}", "", ""])
            continue
        loss = [depth[f"loss{side}_nats"] for side in ("", "_low", "_high")]
        rows.append([flops, _interval(depth, _plain), _interval(tokens, number), _span(*loss, _decimals)])
    return rows


def exponents(grid: str) -> list[list[str]]:
    """Tabulate the exponents by every estimator, with the test of its residuals against replicates."""
    rows = [["", "exponent of µ*", "exponent of D*", "residual scatter, nats"]]
    for name, found in _estimators(grid).items():
        cells = []
        for quantity in ("mean_recurrence", "tokens"):
            law = found["laws"][quantity]
            sides = [law[f"exponent{side}"] for side in ("", "_low", "_high")]
            cells.append("refused" if law["exponent"] is None else _span(*sides, _decimals))
        noise = found["noise"] or {}
        scatter = noise.get("residual_sd_nats")
        p = noise.get("lack_of_fit")
        fit = "" if p is None else f" (lack of fit: p = {p:.2g})"
        rows.append([name, *cells, "" if scatter is None else _decimals(scatter) + fit])
    return rows


def looped_or_fixed(grid: str) -> list[list[str]]:
    """Tabulate the loss of the best recurrence minus that of one loop, at every budget."""
    rows = [["FLOPs", "looped minus fixed, nats", "verdict"]]
    for row in _read(grid, "comparison.json")["rows"]:
        found, at = row["difference"], f" at µ = {row['mean_recurrence']:.3g}"
        at += ", the lowest cell" * (row["choice"] != "fitted curve")
        sides = [found["nats"], found["low_nats"], found["high_nats"]]
        nats = _signed(found["nats"]) if found["low_nats"] is None else _span(*sides, _signed)
        rows.append([number(row["budget_flops"]), nats + at, found["verdict"]])
    return rows


def corners(sweep: str) -> list[list[str]]:
    """Tabulate the losses at the corners of a grid by learning rate, and the cost of the grid's rate."""
    found = _read("summary.json")[sweep]["regret"]
    tried = sorted({rate for row in found for rate in row["losses_nats"]}, key=float)
    rows = [["FLOPs", "µ", *(f"Muon {_decimals(float(rate), 2)}" for rate in tried), "regret, nats"]]
    for row in found:
        losses = [f"{row['losses_nats'][rate]:.3f}" for rate in tried]
        rows.append(
            [
                number(row["target_flops"]),
                f"{row['mean_recurrence']:.0f}",
                *losses,
                _decimals(row["regret_nats"]),
            ]
        )
    return rows


def stability() -> list[list[str]]:
    """Tabulate how many seeds of an injection were stable at every rate, and the loss of all."""
    found = _read("summary.json")["stability"]
    rows = [["AdamW rate", *found["diagonal"]]]
    for injection in ("diagonal", "add", "linear"):
        cells = [
            f"{cell['stable']} of {cell['runs']}, {cell['loss_mean_nats']:.2f} ± {cell['loss_sd_nats']:.2f}"
            for cell in found[injection].values()
        ]
        rows.append([injection, *cells])
    return rows


def costs() -> list[list[str]]:
    """Tabulate what every sweep took, and all together."""
    found = _read("summary.json")["costs"]
    rows = [["sweep", "runs", "FLOPs paid", "core-hours", "executed over expected FLOPs", "utilisation"]]
    for sweep, cost in found.items():
        ratio = " to ".join(f"{cost[f'executed_over_expected_{end}']:.4f}" for end in ("least", "most"))
        rows.append([sweep, *_paid([cost]), ratio, _decimals(cost["utilisation_median"], 2)])
    return [*rows, ["all", *_paid(list(found.values())), "", ""]]


def _paid(costs: list[dict[str, Any]]) -> list[str]:
    runs, flops, hours = (sum(cost[key] for cost in costs) for key in ("runs", "paid_flops", "core_hours"))
    return [str(runs), number(flops), f"{hours:.2f}"]


def scatter() -> list[list[str]]:
    """Tabulate how far runs scatter on each data set."""
    rows = [["data", "runs", "standard deviation over seeds, nats", "cells about a smooth surface, nats"]]
    for name, found in sorted(_read("summary.json")["scatter"].items()):
        spread = _span(*found["seed_sd_nats"], _decimals)
        rows.append([name, str(found["runs"]), spread, _decimals(found["fit_rms_nats"])])
    return rows


def multipliers(sweep: str) -> list[list[str]]:
    """Tabulate the transformer of equal loss of every model, by what is equal and how parameters count."""
    rows = [["model", "equal", "parameters counted", "of the model", "of its equal", "k", "FLOPs over its"]]
    for model in _read(sweep, "multiplier.json")["models"]:
        for row in model["rows"]:
            sizes = [_interval(row[name], number) for name in ("size", "multiplier", "flops_ratio")]
            if row["equal"] == "FLOPs":
                sizes[-1] = ""
            label = f"{model['label'].rpartition(', ')[2]}, {model['values']['loss']:.3f} nats"
            rows.append([label, row["equal"], COUNTED[row["counting"]], number(row["params"]), *sizes])
    return rows


def _loops(kind: str, mean: float) -> str:
    return "fixed depth" if kind == "fixed" else f"µ = {mean:g}"


def ladder(sweep: str) -> list[list[str]]:
    """Tabulate the mean losses of a sweep's models at equal tokens and their scatter over seeds."""
    runs = pd.read_csv(STUDY / sweep / "runs.csv")
    runs = runs[runs["tokens"] == runs.loc[runs["kind"] != "transformer", "tokens"].iloc[0]]
    rows = [["model", "parameters", "without embedding and value tables", "loss, nats", "scatter", "runs"]]
    for (scale, kind, mean), cell in runs.groupby(["scale", "kind", "mean_recurrence"]):
        name = str(scale) if kind == "transformer" else f"{scale}, {_loops(kind, mean)}"
        losses, first = cell["val_loss_nats"], cell.iloc[0]
        tables = first["n_params_embedding"] + first["n_params_value_embedding"]
        sizes = [f"{size:,.0f}" for size in (first["n_params_total"], first["n_params_total"] - tables)]
        rows.append([name, *sizes, f"{losses.mean():.3f}", f"{losses.std():.3f}", str(len(cell))])
    return rows


TABLES: dict[str, Callable[..., list[list[str]]]] = {
    made.__name__: made
    for made in (optima, exponents, looped_or_fixed, corners, stability, costs, scatter, multipliers, ladder)
}


def _read(*path: str) -> Any:
    return json.loads(STUDY.joinpath(*path).read_text(encoding="utf-8"))


def _estimators(grid: str) -> dict[str, Any]:
    (group,) = _read(grid, "laws.json")["groups"]
    return {found["name"]: found for found in group["estimators"]}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(found: dict[str, Any], shown: Callable[[float], str]) -> str:
    if found["value"] is None:
        return "refused"
    return _span(found["value"], found["low"], found["high"], shown)


def _span(value: float, low: float | None, high: float | None, shown: Callable[[float], str]) -> str:
    ends = ("open" if end is None else shown(end) for end in (low, high))
    return f"{shown(value)} [{', '.join(ends)}]"


def _decimals(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _plain(value: float) -> str:
    return f"{value:.2f}"
