"""The published laws of Parcae drawn from its tables and coefficients alone, and the list of all figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import marks, style
from analysis.figures.published_scores import SIZE_PROPS, core_figure, size_figure
from analysis.published import parcae

SIZES = ("140M", "370M")
LEAST = 0.8  # recurrence where the panels of optima begin
COUNTED: dict[str, Any] = {"released": "-", "paper": (0, (4, 2))}  # lines by how FLOPs are counted
DEFINITIONS: dict[tuple[str, str], dict[str, Any]] = {
    (accounting, count): {"color": colour, "linestyle": dashes}
    for count, colour in (("all", "#009E73"), ("non-embedding", "#CC79A7"))
    for accounting, dashes in COUNTED.items()
}
FORMS = {
    "L∞ + Z exp(−z T)": r"$L_\infty + Z\,e^{-zT}$",
    "L∞ + Z (1 + T)^−z": r"$L_\infty + Z\,(1 + T)^{-z}$",
    "L∞ + Z T^−z": r"$L_\infty + Z\,T^{-z}$",
    "Z T^−z": r"$Z\,T^{-z}$",
}


def parcae_figures() -> list[style.ReportFigure]:
    """Draw every figure of the published report."""
    return [
        size_figure(),
        core_figure(),
        recurrence_figure(),
        flops_figure(),
        law_figure(),
        test_time_figure(),
    ]


def recurrence_figure() -> style.ReportFigure:
    """Draw the printed optimal recurrences, the published power law and the training law's own optima."""
    rows = []
    with style.styled():
        fig, panels = style.figure(2, height=2.9, sharey=True)
        for ax, size in zip(panels, SIZES, strict=True):
            flops = parcae.budgets(size)
            printed = parcae.table("core").query("size == @size")["mean_recurrence"].to_numpy(float)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.axhspan(*parcae.SWEPT, color="#eeeeee", linewidth=0)
            wide = np.geomspace(flops[0], flops[-1], 80)
            for (accounting, count), props in DEFINITIONS.items():
                best = parcae.law_optima(size, accounting, count)
                along = parcae.law_optima(size, accounting, count, wide)
                ax.plot(wide, np.where(along > 0, along, np.nan), **props, linewidth=0.9)
                below = flops[best < LEAST]
                ax.plot(below, [1.06 * LEAST] * len(below), "v", color=props["color"])
                rows += [
                    (size, f"law, {count}, {accounting}", c, v) for c, v in zip(flops, best, strict=True)
                ]
            ax.plot(wide, parcae.published_recurrence(size, wide), color=style.INK, linewidth=1.1)
            ax.plot(flops, printed, color=style.INK, marker="o", linestyle="none", markersize=4, zorder=3)
            rows += [(size, "printed optimum", c, v) for c, v in zip(flops, printed, strict=True)]
            ax.set_title(size)
            ax.set_xlabel("training budget C (FLOPs)")
            ax.set_ylim(LEAST, 70)
            ax.set_xlim(flops[0] / 1.3, flops[-1] * 1.3)
            style.log_axis(ax.xaxis, flops.tolist())
            style.recurrence_axis(ax.yaxis, [1, 2, 4, 6, 8, 12, 20, 40])
        panels[0].set_ylabel("optimal mean recurrence µ* (loops)")
        style.legend_outside(fig, 3, _recurrence_handles())
    caption = (
        "Optimal recurrence over the budget. Dots: optima as printed, values of the grid; black line: the "
        "published power law; coloured lines: where the published training law is least, by what N(µ) counts "
        "and how FLOPs are counted. Grey: the recurrences that were trained. Triangles: an optimum below "
        f"µ = {LEAST:g}."
    )
    table = pd.DataFrame(rows, columns=["size", "entry", "budget_flops", "mean_recurrence"])
    return style.ReportFigure(name="recurrence", caption=caption, figure=fig, tables={"optima": table})


def _recurrence_handles() -> list[Line2D]:
    handles = [
        Line2D([], [], color=style.INK, marker="o", linestyle="none", markersize=4, label="printed optimum"),
        Line2D([], [], color=style.INK, linewidth=1.1, label="published power law"),
    ]
    for (accounting, count), props in DEFINITIONS.items():
        handles.append(Line2D([], [], **props, linewidth=0.9, label=f"law, N {count}, {accounting} FLOPs"))
    return handles


def flops_figure() -> style.ReportFigure:
    """Draw FLOPs per token under both accountings, and the tokens left at the published optimum."""
    rows, exponents = [], []
    with style.styled():
        fig, panels = style.figure(2, height=2.8)
        for size, props in SIZE_PROPS.items():
            for accounting, dashes in COUNTED.items():
                frame = parcae.table("flops_per_token").query("size == @size and accounting == @accounting")
                line: dict[str, Any] = {**props, "linestyle": dashes, "markersize": 3.2}
                panels[0].plot(frame["mean_recurrence"], frame["mflop_per_token"], **line)
                rows.append(frame)
                flops = parcae.budgets(size)
                best = parcae.published_recurrence(size, flops)
                tokens = parcae.shape(size, accounting).tokens(best, flops)
                exponent = parcae.implied_tokens_exponent(size, accounting)
                panels[1].plot(flops, tokens, **line, label=f"{size}, {accounting}: exponent {exponent:.3f}")
                exponents += [(size, accounting, c, d, exponent) for c, d in zip(flops, tokens, strict=True)]
        _flops_axes(panels)
    caption = (
        "Two ways of counting FLOPs. (a) Training FLOPs per token over mean recurrence. Solid: as the "
        "released code counts (value-embedding tables in, unembedding out); dashed: as the paper's text says "
        "(the other way round). (b) Tokens D* = C / f(µ*) at the published µ*, with the exponent that "
        "follows; printed are 0.77 (140M) and 0.78 (370M)."
    )
    columns = ["size", "accounting", "budget_flops", "tokens", "exponent"]
    tables = {"flops": pd.concat(rows), "tokens": pd.DataFrame(exponents, columns=columns)}
    return style.ReportFigure(name="flops", caption=caption, figure=fig, tables=tables)


def _flops_axes(panels: list[Axes]) -> None:
    for ax, title in zip(panels, "ab", strict=True):
        ax.set_title(title)
    panels[0].set_xlabel("mean recurrence µ (loops)")
    panels[0].set_ylabel("FLOPs per token (millions)")
    panels[0].set_xticks([1, 2, 4, 6, 8, 10, 12])
    panels[0].set_ylim(0, None)
    handles = [Line2D([], [], **props, markersize=3.2, label=size) for size, props in SIZE_PROPS.items()]
    for accounting, dashes in COUNTED.items():
        handles.append(Line2D([], [], color=style.INK, linestyle=dashes, label=f"{accounting} FLOPs"))
    panels[0].legend(handles=handles, loc="upper left", handlelength=2.4)
    panels[1].set_xscale("log")
    panels[1].set_yscale("log")
    panels[1].set_xlabel("training budget C (FLOPs)")
    panels[1].set_ylabel("optimal tokens D*")
    panels[1].set_ylim(5e8, 2e11)
    style.log_axis(panels[1].xaxis, sorted({c for size in SIZES for c in parcae.budgets(size)}), room=0.24)
    style.decade_axis(panels[1].yaxis, 5e8, 2e11)
    panels[1].legend(loc="upper left", handlelength=2.4)


def law_figure() -> style.ReportFigure:
    """Draw isoFLOP curves of the published training law with its own minima and the printed optima."""
    rows = []
    with style.styled():
        fig, panels = style.figure(2, height=3.0)
        for ax, size in zip(panels, SIZES, strict=True):
            flops, curve = parcae.budgets(size), parcae.shape(size, "released", "all")
            printed = parcae.table("core").query("size == @size")["mean_recurrence"].to_numpy(float)
            colours = style.budget_colours(flops.tolist())
            mu = np.geomspace(1, 16, 120)
            ax.set_xscale("log")
            ends = []
            for budget, best in zip(flops, printed, strict=True):
                loss = parcae.law_loss(size, curve.params(mu), curve.tokens(mu, budget))
                ax.plot(mu, loss, color=colours[budget])
                lowest = int(loss.argmin())
                if 0 < lowest < len(mu) - 1:
                    ax.plot(mu[lowest], loss[lowest], marker="*", markersize=7, color=colours[budget])
                at = float(np.interp(best, mu, loss))
                ax.plot(best, at, marker="o", markersize=3.6, color=style.INK, zorder=3)
                ends.append((float(loss[-1]), style.scientific(budget, 3)))
                rows += [(size, budget, m, value) for m, value in zip(mu[::6], loss[::6], strict=True)]
            ax.set_title(size)
            ax.set_xlabel("mean recurrence µ (loops)")
            style.recurrence_axis(ax.xaxis, [1, 2, 4, 6, 8, 12, 16])
            marks.end_labels(ax, ends, heading="FLOPs")
        panels[0].set_ylabel("loss of the published law (nats per token)")
        style.legend_outside(fig, 2, _law_handles())
    caption = (
        "isoFLOP curves of the published training law, all parameters counted, FLOPs as released. Stars: "
        "minima of the law; a curve without one is least outside µ = 1 to 16. Dots: printed optima of the "
        "parabolas, on the law's curve. Neighbouring "
        "recurrences differ by less than 0.01 nats around the minima, so that seed noise of 0.005 nats "
        "moves a parabola's minimum."
    )
    table = pd.DataFrame(rows, columns=["size", "budget_flops", "mean_recurrence", "loss_nats"])
    return style.ReportFigure(name="training_law", caption=caption, figure=fig, tables={"curves": table})


def _law_handles() -> list[Line2D]:
    base: dict[str, Any] = {"color": style.INK, "linestyle": "none"}
    return [
        Line2D([], [], **base, marker="*", markersize=7, label="minimum of the law"),
        Line2D([], [], **base, marker="o", markersize=3.6, label="printed optimum"),
    ]


def test_time_figure() -> style.ReportFigure:
    """Draw the printed Huber costs of the four forms of test-time law."""
    frame = parcae.table("test_time")
    forms = list(dict.fromkeys(frame["form"]))
    with style.styled():
        fig, (ax,) = style.figure(1, width=style.COLUMN_INCHES, height=2.3)
        ax.set_xscale("log")
        for (size, props), aside in zip(SIZE_PROPS.items(), (-0.14, 0.14), strict=True):
            for evaluated, filled in (("in distribution", True), ("T > µ", False)):
                mine = frame[(frame["size"] == size) & (frame["evaluated"] == evaluated)]
                ax.plot(
                    mine["huber"],
                    [forms.index(form) + aside for form in mine["form"]],
                    **props,
                    linestyle="none",
                    markerfacecolor=props["color"] if filled else "white",
                    label=f"{size}, {evaluated}",
                )
        ax.set_yticks(range(len(forms)), [FORMS[form] for form in forms])
        ax.set_ylim(len(forms) - 0.5, -0.5)
        ax.set_xlim(1e-7, 1e-4)
        ax.set_xlabel("average Huber cost of the log loss")
        style.decade_axis(ax.xaxis, 1e-7, 1e-4)
        style.legend_outside(fig, 2)
    caption = (
        "Forms of the test-time law L(T), by printed Huber cost (δ = 1e-3): fitted and evaluated on all "
        "depths (filled), and fitted up to T = µ and evaluated beyond (open); sizes apart for legibility."
    )
    return style.ReportFigure(name="test_time", caption=caption, figure=fig, tables={"huber": frame})
