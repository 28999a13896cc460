"""Quality against the cost of serving: loss over bytes and over latency, one line per model over depth."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import style

PANELS = {
    "bytes": ("serving_mib", "weights and KV cache (MiB)"),
    "latency": ("decode_ms_per_token", "latency of a token (ms)"),
}


def serve_cost_figure(frame: pd.DataFrame) -> style.ReportFigure | None:
    """Draw the models whose loss is known; None if there is none.

    Parameters
    ----------
    frame : rows of one batch and prompt length, with `model`, `depth`, `val_loss_nats`,
        `serving_bytes`, `decode_ms_per_token`, `front_bytes` and `front_latency`.
    """
    known = frame.dropna(subset="val_loss_nats").assign(
        serving_mib=lambda rows: rows["serving_bytes"] / 2**20
    )
    if known.empty:
        return None
    with style.styled():
        fig, panels = style.figure(len(PANELS), height=2.7)
        for ax, (name, (column, label)) in zip(panels, PANELS.items(), strict=True):
            _panel(ax, known, column, known[known[f"front_{name}"]])
            ax.set_xlabel(label)
        panels[0].set_ylabel("validation loss (nats per token)")
        style.share_loss_axis(panels)
        style.legend_outside(fig, 3, panels[0].get_legend_handles_labels()[0])
    batch, prompt = known[["batch", "prompt_tokens"]].iloc[0]
    caption = (
        "Validation loss over the bytes of weights and of the keys and values, and over the latency of a "
        f"token (median), {batch} at a time after prompts of {prompt} tokens. One line per model over its "
        "test-time depths, which the numbers are. Filled: on the front, where no other one costs at most as "
        "much at no larger loss."
    )
    tables = {
        name: known[["model", "depth", column, "val_loss_nats"]] for name, (column, _) in PANELS.items()
    }
    return style.ReportFigure(name="serve_cost", caption=caption, figure=fig, tables=tables)


def _panel(ax: Axes, frame: pd.DataFrame, column: str, front: pd.DataFrame) -> None:
    for place, (name, rows) in enumerate(frame.groupby("model", sort=False)):
        marker, colour = style.MARKERS[place % len(style.MARKERS)], f"C{place % 10}"
        ordered = rows.sort_values("depth")
        ax.plot(
            ordered[column],
            ordered["val_loss_nats"],
            marker=marker,
            color=colour,
            markerfacecolor="white",
            linewidth=0.7,
            label=str(name),
        )
        for row in ordered.itertuples() if len(ordered) > 1 else ():
            at = float(getattr(row, column)), row.val_loss_nats
            ax.annotate(str(row.depth), at, xytext=(3, 3), textcoords="offset points", color=colour)
        best = ordered[ordered.index.isin(front.index)]
        ax.plot(best[column], best["val_loss_nats"], marker=marker, color=colour, linestyle="none")
    ax.set_xscale("log")
    style.plain_log_axis(ax.xaxis)
