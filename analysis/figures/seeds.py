"""Training noise: how far runs that differ in their seed alone end from their cell's mean."""

from __future__ import annotations

import pandas as pd

from analysis.figures import style
from analysis.stats.noise import NoiseFloor


def seeds_figure(noise: NoiseFloor) -> style.Drawn | None:
    """Draw the deviations of replicate seeds cell by cell; None without replicates."""
    if noise.sd_nats is None:
        return None
    with style.styled():
        made, (ax,) = style.figure(1, width=style.COLUMN_INCHES, height=0.9 + 0.28 * len(noise.cells))
        ax.axvspan(-noise.sd_nats, noise.sd_nats, color="#e6e6e6", linewidth=0)
        ax.axvline(0, color=style.FAINT, linewidth=0.6)
        for place, cell in enumerate(noise.cells):
            values = cell.deviations_nats
            ax.plot(
                values, [place] * len(values), marker="o", linestyle="none", markersize=3.6, color=style.INK
            )
        ax.set_yticks(range(len(noise.cells)), [cell.label for cell in noise.cells])
        ax.set_ylim(len(noise.cells) - 0.5, -0.5)
        reach = 1.15 * max(noise.sd_nats, *(abs(v) for cell in noise.cells for v in cell.deviations_nats))
        ax.set_xlim(-reach, reach)
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel("loss minus cell mean (nats)")
    caption = f"Replicate seeds by cell; the grey band is the pooled standard deviation: {noise.summary()}."
    rows = [
        (cell.label, run_id, cell.mean_nats, value)
        for cell in noise.cells
        for run_id, value in zip(cell.run_ids, cell.deviations_nats, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["cell", "run_id", "cell_mean_nats", "deviation_nats"])
    return style.Drawn(name="seeds", caption=caption, figure=made, tables={"deviations": table})
