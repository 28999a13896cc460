"""The report's pages: each a template filled with the values that its tables, figures and results give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.compare.arm_comparison import ArmComparison
from analysis.compare.comparison import Comparison
from analysis.compare.multiplier_comparison import MultiplierComparison
from analysis.config import FitConfig
from analysis.format import number
from analysis.isoflop.curves import QUANTITY_NAMES
from analysis.laws.objective import PUBLISHED_DELTA
from analysis.report import overview, tables
from analysis.report.chart import chart
from analysis.report.page import Drawn, embedded, own_version, page
from analysis.study.device_hours import DeviceHoursFit
from analysis.study.points import IsoflopFit, in_unit
from analysis.study.study import StudyFit


def render(
    runs: pd.DataFrame,
    study: StudyFit,
    comparison: Comparison,
    drawn: Sequence[Drawn],
    title: str,
    arms: Sequence[ArmComparison] = (),
    not_compared: Sequence[str] = (),
    worth: MultiplierComparison | None = None,
    further: Sequence[str] = (),
) -> str:
    """Return the page of a study as text.

    `arms` are the comparisons of the recipe's axes, `not_compared` the reasons for those that have none,
    `worth` that with a ladder of plain transformers, `further` lines on what to do next.
    """
    figures = [embedded(one) for one in drawn]
    return page(
        "report.html",
        overview.further(figures),
        title=title,
        facts=overview.facts(runs, study, own_version()),
        contents=overview.CONTENTS,
        laws=overview.laws(study, comparison, figures),
        further=further,
        study=study,
        charts=[chart(group, "nats") for group in study.groups],
        groups=tables.group_tables(study.groups),
        envelopes=[(item, tables.group_tables(item.groups)) for item in study.envelopes],
        arms=arms,
        not_compared=not_compared,
        worth=worth,
        differences=tables.difference_tables(comparison),
        difference_headings=tables.difference_headings(comparison),
        choices=tables.choices(comparison),
        compared=comparison.paragraph(),
        rate_rows=tables.rate_rows(study.depth),
        run_laws=[law.summary().splitlines() for law in study.run_laws],
        held_out=tables.held_out(study.validation),
        variants=tables.variant_tables(study.groups, study.sensitivity),
        refusals=tables.folded(tables.study_refusals(study)),
        run_headings=[heading for _, heading, _ in tables.RUN_COLUMNS],
        run_rows=tables.run_rows(runs),
        provenance=[
            ("runs table", study.runs_digest),
            ("depth table", study.depths_digest),
            *_settings(study.config),
            ("parameters counted in N(µ)", study.config.parameter_count),
        ],
    )


def render_points(fit: IsoflopFit, drawn: Sequence[Drawn], title: str) -> str:
    """Return the page of a table of points as text."""
    return page(
        "points.html",
        [embedded(one) for one in drawn],
        title=title,
        fit=fit,
        unit=fit.unit,
        flags=[in_unit(flag, fit.unit) for flag in fit.group.flags],
        headlines=fit.headlines(),
        charts=[chart(fit.group, fit.unit)],
        groups=tables.group_tables((fit.group,)),
        held_out=tables.held_out(fit.validation),
        variants=tables.variant_tables((fit.group,), fit.sensitivity),
        refusals=tables.folded(tables.group_refusals(fit.group)),
        provenance=[("table", fit.points_digest), *_settings(fit.config)],
    )


def render_device_hours(fit: DeviceHoursFit, drawn: Sequence[Drawn], title: str) -> str:
    """Return the page of laws over device-hours as text."""
    shown = [group for group in fit.groups if not group.refusal]
    refusals = [(item.run_id, f"left out: {item.reason}") for item in fit.left_out]
    refusals += [("group", text) for text in fit.skipped]
    refusals += [(group.label, group.refusal) for group in fit.groups if group.refusal]
    return page(
        "device_hours.html",
        [embedded(one) for one in drawn],
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
        refusals=tables.folded(refusals),
        provenance=[
            ("runs table", fit.runs_digest),
            *_settings(fit.config),
            ("parameters counted in N(µ)", fit.config.parameter_count),
        ],
    )


def _settings(config: FitConfig) -> list[tuple[str, Any]]:
    by = f" by {config.block}" if config.resampling == "block" else ""
    resamples = f"{config.bootstrap} ({config.resampling}{by}), {config.seed}, {config.confidence}"
    return [
        ("resamples, seed, confidence", resamples),
        ("Huber delta of the surface's cost", config.huber_delta or PUBLISHED_DELTA),
    ]
