"""The head of a study's page: what was trained, on what and at which cost, and the laws in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.compare.comparison import Comparison
from analysis.format import number, plural
from analysis.isoflop.geometry import backprop_share, on_isoflop_curve
from analysis.study.study import StudyFit

# heading of a law, beginnings of the names of the figures beside it
BESIDE = {
    "The best recurrence and tokens over the budget": ("power_laws",),
    "Looped against fixed depth": ("looped_vs_fixed",),
    "Depth at test time": ("depth_curves",),
}
CONTENTS = (
    ("laws", "The laws"),
    ("runs_by_budget", "Loss at equal FLOPs"),
    ("figures", "Further figures"),
    ("optima", "Laws and optima"),
    ("fixed", "Looped against fixed depth"),
    ("depth", "Test-time depth"),
    ("held_out", "Prediction of runs left out"),
    ("checks", "Checks"),
    ("refused", "Refused, and why"),
    ("runs", "Runs"),
    ("provenance", "Provenance"),
)


def facts(runs: pd.DataFrame, study: StudyFit, version: str) -> list[tuple[str, str]]:
    """Return what was trained, on what, how many runs, at which cost and by which version: (name, text)."""
    kinds = runs["kind"].value_counts()
    counted = [
        f"{kinds[kind]} {name}"
        for kind, name in (
            ("looped", "looped"),
            ("fixed", "of fixed depth"),
            ("transformer", "of plain transformers"),
        )
        if kind in kinds
    ]
    budgets = runs["target_flops"].dropna()
    seeds = runs["seed"].nunique()
    plain = runs["kind"] == "transformer"
    sizes = [_size(rows.iloc[0]) for _, rows in runs[~plain].groupby("scale", sort=False)]
    if plain.any():
        params = runs["n_params_total"][plain]
        sizes.append(
            f"plain transformers of {params.nunique()} sizes, {params.min():,} to {params.max():,} parameters"
        )
    found = [
        ("trained", "; ".join(sizes)),
        ("data", _data(runs)),
        (
            "runs",
            f"{', '.join(counted)}; {budgets.nunique()} budgets from {number(budgets.min())} to "
            f"{number(budgets.max())} FLOPs; {plural(seeds, 'seed')}"
            + (f"; {plural(len(study.left_out), 'run')} left out" if study.left_out else "")
            + _beside(runs[runs["kind"] == "looped"]),
        ),
        ("cost", _cost(runs)),
        ("noise", study.noise.summary()),
        ("version", f"trained with loopscale {_each(runs['code_version'])}, analysed with {version}"),
    ]
    return [(name, text) for name, text in found if text]


def laws(study: StudyFit, comparison: Comparison, figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each law's heading, its sentences and the figures beside them."""
    *optima, depth = study.headlines()
    lines = (optima, [comparison.headline()], [depth])
    return [
        {
            "heading": heading,
            "lines": sentences,
            "figures": [figure for figure in figures if figure["name"].startswith(names)],
        }
        for (heading, names), sentences in zip(BESIDE.items(), lines, strict=True)
    ]


def further(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures that stand beside no law."""
    beside = tuple(name for names in BESIDE.values() for name in names)
    return [figure for figure in figures if not figure["name"].startswith(beside)]


def _size(run: pd.Series[Any]) -> str:
    layers = "/".join(str(run[f"{part}_layers"]) for part in ("prelude", "core", "coda"))
    return (
        f"{run['scale']}: {run['n_params_total']:,} parameters, {run['n_params_core']:,} of them in the loop"
        f"; layers before/in/after the loop {layers}, width {run['width']}"
    )


def _data(runs: pd.DataFrame) -> str:
    tokens = runs["unique_tokens"].dropna()
    size = f", {number(tokens.max())} training tokens" if len(tokens) else ""
    return f"{_each(runs['dataset'])}{size}, vocabulary {_each(runs['vocabulary_size'])}"


def _beside(looped: pd.DataFrame) -> str:
    """Return how many runs have an odd recurrence, whose FLOPs lie beside the continuous isoFLOP curve."""
    if looped.empty:
        return ""
    beside = ~on_isoflop_curve(looped, backprop_share(looped))
    if not beside.any():
        return ""
    odd = ", ".join(f"{mu:g}" for mu in sorted(looped["mean_recurrence"][beside].unique()))
    used = "of the estimators the surface alone uses them"
    return f"; {beside.sum()} at µ = {odd} lie beside the isoFLOP curves, and {used}"


def _cost(runs: pd.DataFrame) -> str:
    """Return what was paid: of the steps of a trunk that several runs share, each bears its share."""
    paid = runs["executed_flops"] - runs["trunk_flops"] + runs["trunk_share_flops"]
    seconds = float((runs["device_s"] * paid / runs["executed_flops"]).sum())
    return f"{number(paid.sum())} FLOPs in {_hours(seconds)} on {_each(runs['device'])}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} device-hours" if seconds >= 3600 else f"{seconds / 60:.3g} device-minutes"


def _each(values: Iterable[Any]) -> str:
    """Return the distinct values in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if not pd.isna(value)))
