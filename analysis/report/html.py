"""The values of the report's pages: laws in words, tables, refusals, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.arm_comparison import ArmComparison
from analysis.compare.comparison import Comparison
from analysis.compare.compute_multiplier import ComputeMultiplier
from analysis.compare.rows import SUITE_TITLES, RecurrenceRow, suite_names
from analysis.figures import style
from analysis.format import error, number, span
from analysis.isoflop.curves import QUANTITY_NAMES, Quantity
from analysis.isoflop.group import GroupFit
from analysis.report.page import page
from analysis.study.device_hours import DeviceHoursFit
from analysis.study.holdout import Holdout
from analysis.study.points import IsoflopFit, in_unit
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


def render(
    runs: pd.DataFrame,
    study: StudyFit,
    comparison: Comparison,
    drawn: Sequence[tuple[style.ReportFigure, bytes]],
    title: str,
    arms: Sequence[ArmComparison] = (),
    not_compared: Sequence[str] = (),
) -> str:
    """Return the page as text; `drawn` pairs each figure with its PNG, which is embedded.

    `arms` are the comparisons of the recipe's axes, `not_compared` the reasons for those that have none.
    """
    return page(
        "report.html",
        drawn,
        title=title,
        study=study,
        comparison=comparison,
        headlines=study.headlines(),
        groups=_groups(study.groups),
        envelopes=[(item, _groups(item.groups)) for item in study.envelopes],
        arms=arms,
        not_compared=not_compared,
        differences=_differences(comparison),
        suites=[SUITE_TITLES.get(name, name) for name in suite_names(comparison.rows)],
        compared=comparison.paragraph(),
        rate_rows=study.depth.by_recurrence,
        run_laws=[law.summary().splitlines() for law in study.run_laws],
        held_out=held_out(study.validation),
        variants=variant_tables(study.groups, study.sensitivity),
        refusals=_refusals(study),
        run_headings=[heading for _, heading, _ in RUN_COLUMNS],
        run_rows=_run_rows(runs),
    )


def render_points(fit: IsoflopFit, drawn: Sequence[tuple[style.ReportFigure, bytes]], title: str) -> str:
    """Return the page of a table of points as text."""
    return page(
        "points.html",
        drawn,
        title=title,
        fit=fit,
        unit=fit.unit,
        flags=[in_unit(flag, fit.unit) for flag in fit.group.flags],
        headlines=fit.headlines(),
        groups=_groups((fit.group,)),
        held_out=held_out(fit.validation),
        variants=variant_tables((fit.group,), fit.sensitivity),
        refusals=_group_refusals(fit.group),
    )


def render_device_hours(
    fit: DeviceHoursFit, drawn: Sequence[tuple[style.ReportFigure, bytes]], title: str
) -> str:
    """Return the page of laws over device-hours as text."""
    shown = [group for group in fit.groups if not group.refusal]
    refusals = [(item.run_id, f"left out: {item.reason}") for item in fit.left_out]
    refusals += [("group", text) for text in fit.skipped]
    refusals += [(group.label, group.refusal) for group in fit.groups if group.refusal]
    return page(
        "device_hours.html",
        drawn,
        title=title,
        fit=fit,
        headlines=fit.headlines(),
        groups=[
            {
                "label": group.label,
                "seconds": group.seconds and group.seconds.summary(),
                "notes": group.notes,
                "names": [QUANTITY_NAMES[quantity] for quantity in group.laws],
                "laws": [
                    [QUANTITY_NAMES[quantity], law.summary(), law.isoflop_exponent]
                    for quantity, law in group.laws.items()
                ],
                "optima": [
                    [number(row[0].hours), *(one.summary().removeprefix("= ") for one in row)]
                    for row in zip(*(law.optima for law in group.laws.values()), strict=True)
                ],
            }
            for group in shown
        ],
        refusals=refusals,
    )


def _groups(groups: Sequence[GroupFit]) -> list[dict[str, Any]]:
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


def _differences(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Return per group one row a budget; points are those of the trained recurrence next to the best."""
    suites = suite_names(comparison.rows)
    tables: dict[str, list[list[str]]] = {}
    for row in comparison.rows:
        difference, nearest = row.difference, row.nearest()
        tables.setdefault(row.group, []).append(
            [
                number(row.budget_flops),
                f"{row.mean_recurrence:.3g}",
                f"{row.choice}: {row.why}",
                f"{row.looped_nats:.4f}",
                f"{row.fixed_nats:.4f}",
                f"{difference.nats:+.4f}",
                difference.interval(),
                "–" if difference.bits_per_byte is None else f"{difference.bits_per_byte:+.4f}",
                difference.verdict,
                _multiplier(row.saving),
                *(_points(nearest, suite) for suite in suites),
            ]
        )
    return tables


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


def _refusals(study: StudyFit) -> list[tuple[str, str]]:
    refusals = [(item.run_id, f"left out: {item.reason}") for item in study.left_out]
    refusals += [("group", text) for text in study.skipped]
    for group in study.groups:
        refusals += _group_refusals(group)
    refusals += [(f"{law.group}, {law.law} law", law.refusal) for law in study.run_laws if law.refusal]
    if study.depth.refusal:
        refusals.append(("rate z over µ", study.depth.refusal))
    refusals += [(f"depth curve of {c.run_id}", c.fit.refusal) for c in study.depth.curves if c.fit.refusal]
    return refusals


def _group_refusals(group: GroupFit) -> list[tuple[str, str]]:
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


def _run_rows(runs: pd.DataFrame) -> list[list[str]]:
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
