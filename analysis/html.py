"""The report as one HTML page: laws in words, figures, tables, refusals, provenance."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import scipy

from analysis import style, words
from analysis.compare import Comparison
from analysis.study import StudyFit

TEMPLATES = Path(__file__).parent / "templates"

# column of the runs table, heading with unit, format
RUN_COLUMNS = (
    ("run_id", "run", "{}"),
    ("scale", "scale", "{}"),
    ("kind", "kind", "{}"),
    ("mean_recurrence", "µ", "{:g}"),
    ("seed", "seed", "{:d}"),
    ("target_flops", "budget (FLOPs)", "{:.3g}"),
    ("executed_flops", "executed (FLOPs)", "{:.3g}"),
    ("tokens", "tokens (M)", "{:,.1f}"),
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
    drawn: Sequence[tuple[style.Drawn, bytes]],
    title: str,
) -> str:
    """Return the page as text; `drawn` pairs each figure with its PNG, which is embedded."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html").render(
        title=title,
        study=study,
        comparison=comparison,
        headlines=study.headlines(),
        figures=[
            {"name": one.name, "caption": one.caption, "image": base64.b64encode(png).decode()}
            for one, png in drawn
        ],
        law_rows=_law_rows(study),
        optimum_rows=_optimum_rows(study),
        difference_rows=_difference_rows(comparison),
        rate_rows=study.depth.by_recurrence,
        refusals=_refusals(study),
        run_headings=[heading for _, heading, _ in RUN_COLUMNS],
        run_rows=_run_rows(runs),
        versions=_versions(),
        words=words,
    )


def _law_rows(study: StudyFit) -> list[list[str]]:
    rows = []
    for group in study.groups:
        for quantity, name in words.QUANTITY.items():
            for estimator in group.estimators:
                law = estimator.laws[quantity]
                rows.append([group.label, name, estimator.name, words.law(law)])
    return rows


def _optimum_rows(study: StudyFit) -> list[list[str]]:
    rows = []
    for group in study.groups:
        for quantity, name in words.QUANTITY.items():
            for k, budget in enumerate(group.budgets_flops):
                cells = [words.optimum(e.optima[quantity][k], quantity) for e in group.estimators]
                rows.append([group.label, name, f"{budget:.3g}", *cells])
    return rows


def _difference_rows(comparison: Comparison) -> list[list[str]]:
    rows = []
    for row in comparison.rows:
        d = row.difference
        interval = (
            "unknown"
            if d.low_nats is None or d.high_nats is None
            else f"[{d.low_nats:+.4f}, {d.high_nats:+.4f}]"
        )
        bits = "" if d.bits_per_byte is None else f"{d.bits_per_byte:+.4f}"
        rows.append(
            [row.group, f"{row.budget_flops:.3g}", f"{row.mean_recurrence:.3g}", row.choice, f"{row.looped_nats:.4f}",
             f"{row.fixed_nats:.4f}", f"{d.nats:+.4f}", interval, bits, d.verdict]
        )  # fmt: skip
    return rows


def _refusals(study: StudyFit) -> list[tuple[str, str]]:
    found = [(item.run_id, f"left out: {item.reason}") for item in study.left_out]
    found += [("group", text) for text in study.skipped]
    for group in study.groups:
        for estimator in group.estimators:
            for quantity, law in estimator.laws.items():
                if law.refusal:
                    found.append(
                        (f"{group.label}, {estimator.name}, law of {words.QUANTITY[quantity]}", law.refusal)
                    )
                if estimator.refusal:
                    continue
                for o in estimator.optima[quantity]:
                    if o.refusal:
                        where = f"{group.label}, {estimator.name}, {words.QUANTITY[quantity]} at {o.budget_flops:.3g} FLOPs"
                        found.append((where, o.refusal))
    if study.depth.refusal:
        found.append(("rate z over µ", study.depth.refusal))
    found += [(f"depth curve of {c.run_id}", c.fit.refusal) for c in study.depth.curves if c.fit.refusal]
    return found


def _run_rows(runs: pd.DataFrame) -> list[list[str]]:
    ordered = runs.sort_values(
        ["scale", "accounting", "target_flops", "kind", "mean_recurrence", "seed", "run_id"]
    )
    rows = []
    for _, run in ordered.iterrows():
        cells = []
        for name, _, form in RUN_COLUMNS:
            value: Any = run[name]
            if name == "tokens":
                value = value / 1e6
            missing = isinstance(value, float | np.floating) and not np.isfinite(value)
            cells.append("–" if missing else form.format(value))
        rows.append(cells)
    return rows


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
        "matplotlib": matplotlib.__version__,
    }
