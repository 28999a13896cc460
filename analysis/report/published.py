"""`report data=parcae_published`: the paper's results redrawn, each claim beside what its numbers support."""

from __future__ import annotations

from pathlib import Path

from analysis.figures.published import parcae_figures
from analysis.format import number
from analysis.published import parcae
from analysis.report import html
from analysis.report.report import save_figures, write_page
from analysis.tables.selection import digest

TITLE = "Parcae (arXiv 2604.12946), from its published numbers"


def parcae_report(folder: Path) -> tuple[Path, list[str]]:
    """Write `folder`/index.html with figures and their data; return its path and the claims in words."""
    claims = parcae.claims()
    tables = {name: parcae.table(name) for name in parcae.TABLES}
    sources = [
        (name, len(frame), "; ".join(sorted(set(frame["source"]))), digest(frame))
        for name, frame in tables.items()
    ]
    text = html.page(
        "published.html",
        save_figures(parcae_figures(), folder),
        title=TITLE,
        claims=claims,
        differences=[
            [
                size,
                number(flops),
                f"{depth:g}",
                *(f"{value:+.1f}" if value else "0.0" for value in points[::2]),
            ]
            + [f"{value:.2f}" for value in points[1::2]]
            for size, flops, depth, *points in parcae.core_differences().to_numpy()
        ],
        errors=[
            [size, count, *(f"{value:.3f}" for value in losses), f"{percent:.2f}"]
            for size, count, *losses, percent in parcae.held_out_errors().to_numpy()
        ],
        sources=sources,
    )
    return write_page(folder, text), [f"{claim.claim} {claim.support}" for claim in claims]
