"""The tables of the report's pages: laws, optima, differences, held-out runs, refusals and runs, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.comparison import Comparison
from analysis.compare.compute_multiplier import ComputeMultiplier
from analysis.compare.loss_difference import LossDifference
from analysis.compare.rows import SUITE_TITLES, RecurrenceRow, suite_names
from analysis.format import error, number, span
from analysis.isoflop.curves import QUANTITY_NAMES, Quantity
from analysis.isoflop.group import GroupFit
from analysis.study.depth import DepthStudy
from analysis.study.holdout import Holdout
from analysis.study.sensitivity import Variant
from analysis.study.study import StudyFit

# column of the runs table, heading with unit, format
RUN_COLUMNS = (
    ("run_id", "run", "{}"),
    ("scale", "scale", "{}"),
    ("kind", "kind", "{}"),
    ("mean_recurrence", "µ", "{:g}"),
    ("seed", "seed", "{:d}"),
    ("target_flops", "budget (FLOPs)", "number"),
    ("executed_flops", "executed (FLOPs)", "number"),
    ("tokens", "tokens", "number"),
    ("steps", "steps", "{:,d}"),
    ("val_loss_nats", "loss (nats)", "{:.4f}"),
    ("val_bits_per_byte", "bits/byte", "{:.4f}"),
    ("wall_s", "wall (s)", "{:,.0f}"),
    ("status", "status", "{}"),
)


def group_tables(groups: Sequence[GroupFit]) -> list[dict[str, Any]]:
    """Return per group its laws, quantity by estimator, and its optima, budget by estimator."""
    tables = []
    for group in groups:
        names = [estimator.name for estimator in group.estimators]
        names_of = {quantity: QUANTITY_NAMES[quantity] for quantity in group.quantities}
        laws = [
            [name, *(estimator.laws[quantity].summary() for estimator in group.estimators)]
            for quantity, name in names_of.items()
        ]
        optima = {name: _optimum_rows(group, quantity) for quantity, name in names_of.items()}
        tables.append(
            {"label": group.label, "names": names, "laws": laws, "optima": optima, "flags": group.flags}
        )
    return tables


def _optimum_rows(group: GroupFit, quantity: Quantity) -> list[list[str]]:
    rows = []
    for k, budget in enumerate(group.budgets_flops):
        cells = [estimator.optima[quantity][k].short_summary() for estimator in group.estimators]
        loss = group.estimator().optima[quantity][k].loss_nats
        rows.append([number(budget), *cells, "–" if loss is None else f"{loss:.4f}"])
    return rows


def difference_headings(comparison: Comparison) -> list[str]:
    """Return the headings of the tables of looped minus fixed depth."""
    points = [f"{SUITE_TITLES.get(name, name)} points" for name in suite_names(comparison.rows)]
    return [
        "budget (FLOPs)",
        "best µ",
        "looped (nats)",
        "fixed (nats)",
        "difference (nats)",
        "bits per byte",
        "verdict",
        "FLOPs of fixed / looped at equal loss",
        *points,
    ]


def difference_tables(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Return per group one row a budget; points are those of the trained recurrence next to the best."""
    suites = suite_names(comparison.rows)
    tables: dict[str, list[list[str]]] = {}
    for row in comparison.rows:
        difference, nearest = row.difference, row.nearest()
        lowest = "" if row.choice == "fitted curve" else ", lowest cell"
        tables.setdefault(row.group, []).append(
            [
                number(row.budget_flops),
                f"{row.mean_recurrence:.3g}{lowest}",
                f"{row.looped_nats:.4f}",
                f"{row.fixed_nats:.4f}",
                _with_interval(difference),
                "–" if difference.bits_per_byte is None else f"{difference.bits_per_byte:+.4f}",
                difference.verdict,
                _multiplier(row.saving),
                *(_points(nearest, suite) for suite in suites),
            ]
        )
    return tables


def choices(comparison: Comparison) -> list[str]:
    """Return how the best recurrence of each budget was found, one note per reason."""
    budgets: dict[str, list[str]] = {}
    for row in comparison.rows:
        reason = (
            row.why if row.choice == "fitted curve" else f"the lowest trained cell stands for it: {row.why}"
        )
        budgets.setdefault(reason, []).append(number(row.budget_flops))
    return [f"Best µ at {', '.join(where)} FLOPs: {reason}" for reason, where in budgets.items()]


def _with_interval(difference: LossDifference) -> str:
    known = difference.low_nats is not None and difference.high_nats is not None
    return f"{difference.nats:+.4f} {difference.interval() if known else '(noise unknown)'}"


def _points(cell: RecurrenceRow, suite: str) -> str:
    score = cell.score(suite)
    if score is None:
        return "not evaluated"
    return f"{score.summary()} at µ = {cell.mean_recurrence:g}: {score.verdict}"


def _multiplier(multiplier: ComputeMultiplier) -> str:
    if multiplier.ratio is None:
        return multiplier.refusal or ""
    low, high = multiplier.low, multiplier.high
    return f"{multiplier.ratio:.2f}" + ("" if low is None and high is None else f" {span(low, high)}")


def held_out(validation: Holdout | None) -> list[list[str]]:
    """Return rows of kind, group, what was left out, points and errors (or why there is no prediction)."""
    rows = []
    for kind, row in validation.rows() if validation else ():
        errors = [row.bias_nats, row.error_nats, row.error_percent]
        shown = ["–" if value is None else error(value) for value in errors]
        rows.append([kind, row.group, row.left_out, str(row.points), *shown, row.refusal or ""])
    return rows


def variant_tables(groups: Sequence[GroupFit], variants: Sequence[Variant] | None) -> list[dict[str, Any]]:
    """Return one table per group that has a law: choices by quantity and estimator."""
    tables: list[dict[str, Any]] = []
    if not variants:
        return tables
    for group in groups:
        names = [estimator.name for estimator in group.estimators]
        heads = [f"{QUANTITY_NAMES[quantity]}, {name}" for quantity in group.quantities for name in names]
        rows = []
        for variant in variants:
            if variant.group == group.label:
                values = [
                    variant.exponents[quantity][name] for quantity in group.quantities for name in names
                ]
                rows.append([variant.choice, *("–" if value is None else f"{value:.3f}" for value in values)])
        if any(cell != "–" for row in rows for cell in row[1:]):
            tables.append({"label": group.label, "heads": heads, "rows": rows})
    return tables


def rate_rows(depth: DepthStudy) -> list[list[str]]:
    """Return the rate z and the plateau of the depth curves at each mean recurrence."""

    def shown(value: float | None, places: int) -> str:
        return "–" if value is None else f"{value:.{places}f}"

    return [
        [
            f"{row.mean_recurrence:g}",
            str(row.curves),
            str(row.fitted),
            shown(row.rate, 3),
            shown(row.rate_times_recurrence, 2),
            shown(row.rate_times_recurrence_sd, 2),
            shown(row.plateau, 1),
        ]
        for row in depth.by_recurrence
    ]


def folded(refusals: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return each reason without its numbers once, with what was refused for it, the most frequent first."""
    by_reason: dict[str, list[str]] = {}
    for what, why in refusals:
        by_reason.setdefault(why.split(" (")[0], []).append(what)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return [{"why": why, "what": what, "count": len(what)} for why, what in ordered]


def study_refusals(study: StudyFit) -> list[tuple[str, str]]:
    refusals = [(item.run_id, f"left out: {item.reason}") for item in study.left_out]
    refusals += [("group", text) for text in study.skipped]
    for group in study.groups:
        refusals += group_refusals(group)
    refusals += [(f"{law.group}, {law.law} law", law.refusal) for law in study.run_laws if law.refusal]
    if study.depth.refusal:
        refusals.append(("rate z over µ", study.depth.refusal))
    refusals += [(f"depth curve of {c.run_id}", c.fit.refusal) for c in study.depth.curves if c.fit.refusal]
    return refusals


def group_refusals(group: GroupFit) -> list[tuple[str, str]]:
    refusals = []
    for estimator in group.estimators:
        for quantity, law in estimator.laws.items():
            if law.refusal:
                what = f"{group.label}, {estimator.name}, law of {QUANTITY_NAMES[quantity]}"
                refusals.append((what, law.refusal))
            for o in () if estimator.refusal else estimator.optima[quantity]:
                if o.refusal:
                    where = f"{QUANTITY_NAMES[quantity]} at {number(o.budget_flops)} FLOPs"
                    refusals.append((f"{group.label}, {estimator.name}, {where}", o.refusal))
    return refusals


def run_rows(runs: pd.DataFrame) -> list[list[str]]:
    ordered = runs.sort_values(
        ["scale", "accounting", "target_flops", "kind", "mean_recurrence", "seed", "run_id"]
    )
    rows = []
    for _, run in ordered.iterrows():
        cells = []
        for name, _, form in RUN_COLUMNS:
            value: Any = run[name]
            missing = isinstance(value, float | np.floating) and not np.isfinite(value)
            cells.append("–" if missing else number(value) if form == "number" else form.format(value))
        rows.append(cells)
    return rows
