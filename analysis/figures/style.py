"""How every figure looks: sizes for print, colours, and how numbers and labels are written.

Figures are made without pyplot: the import stays cheap, and no global state is changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from analysis.result_files import write_result
from analysis.serialize import rounded

COLUMN_INCHES = 3.25
PAGE_INCHES = 6.75
NARROW_INCHES = 3.0  # on a phone, where 7 pt are 12 pixels
PNG_DPI = 200
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
INK, FAINT, WARN = "#222222", "#666666", "#b2182b"
NARROW: ContextVar[bool] = ContextVar("narrow", default=False)
RC: dict[str, Any] = {
    "font.size": 7.0,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.8,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "savefig.dpi": PNG_DPI,
}


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A finished figure with its caption and the data of its panels."""

    name: str
    caption: str
    figure: Figure = field(repr=False)
    tables: dict[str, pd.DataFrame] = field(repr=False)


def figure(
    columns: int = 1, *, rows: int = 1, width: float = PAGE_INCHES, height: float = 2.5, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row; `narrow` puts them below each other in one column."""
    if NARROW.get():
        width, height = NARROW_INCHES, max(height / rows, 2.0) * rows * columns
        rows, columns = rows * columns, 1
    fig = Figure(figsize=(width, height), layout="constrained")
    panels = fig.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    return fig, list(panels)


@contextmanager
def narrow() -> Iterator[None]:
    """Draw every figure one column wide, for the screen of a phone."""
    token = NARROW.set(True)
    try:
        yield
    finally:
        NARROW.reset(token)


def share_loss_axis(panels: Sequence[Axes]) -> None:
    """Leave the label of the axis that panels share to the first, where they stand side by side."""
    for ax in panels[1:]:
        if not NARROW.get():
            ax.set_ylabel("")


def legend_outside(
    fig: Figure,
    columns: int,
    handles: Sequence[Any] | None = None,
    *,
    side: str = "lower",
    title: str | None = None,
) -> None:
    """Put one legend of all panels, or of `handles`, above or below them in at most `columns` columns."""
    chosen: dict[str, Any] = {} if handles is None else {"handles": handles}
    columns = min(columns, 2) if NARROW.get() else columns
    fig.legend(**chosen, loc=cast(Any, f"outside {side} center"), ncols=columns, title=title)


def styled() -> Any:
    """Return the context in which figures are drawn and saved."""
    return matplotlib.rc_context(cast(Any, RC))


def save_figure(drawn: ReportFigure, folder: Path) -> bytes:
    """Write one CSV per panel, NAME.png and NAME.pdf into `folder`; return the PNG.

    A figure that is there stays as it is unless its data say something else.
    """
    changed = [
        write_result(folder / f"{drawn.name}_{panel}.csv", _csv(table))
        for panel, table in drawn.tables.items()
    ]
    pictures = [folder / f"{drawn.name}{suffix}" for suffix in (".png", ".pdf")]
    missing = [path for path in pictures if any(changed) or not path.exists()]
    with styled():
        if missing:
            freeze_layout(drawn.figure)
        for path in missing:
            # Without a date the same figure has the same bytes.
            dates = {"CreationDate": None} if path.suffix == ".pdf" else None
            drawn.figure.savefig(path, dpi=PNG_DPI, metadata=dates)
    return pictures[0].read_bytes()


def png(fig: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    with styled():
        freeze_layout(fig)
        fig.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def _csv(table: pd.DataFrame) -> str:
    def shown(value: Any) -> str:
        return repr(rounded(float(value)))

    return table.to_csv(index=False, float_format=shown)


def freeze_layout(fig: Figure) -> None:
    """Lay the figure out once and keep that layout, since every save would compute it again."""
    if lay_out(fig):
        fig.set_layout_engine("none")


def lay_out(fig: Figure) -> bool:
    """Place the panels as drawing the figure would, which takes longer; return False if that is done."""
    engine = fig.get_layout_engine()
    if engine is None:
        return False
    engine.execute(fig)
    return True


def recurrence_colours(recurrences: Sequence[float]) -> dict[float, Any]:
    """Return an ordered, colour-blind-safe colour for each mean recurrence."""
    return _ordered(recurrences, "viridis", 0.0, 0.75)


def budget_colours(budgets: Sequence[float]) -> dict[float, Any]:
    """Return an ordered colour for each budget, on another scale than recurrence."""
    return _ordered(budgets, "plasma", 0.0, 0.70)


def budget_markers(budgets: Sequence[float]) -> dict[float, str]:
    """Return an ordered marker for each budget."""
    return {budget: MARKERS[i % len(MARKERS)] for i, budget in enumerate(sorted(set(budgets)))}


def _ordered(values: Sequence[float], name: str, low: float, high: float) -> dict[float, Any]:
    ordered = sorted(set(values))
    places = np.linspace(low, high, len(ordered)) if len(ordered) > 1 else np.array([(low + high) / 2])
    return {value: colormaps[name](place) for value, place in zip(ordered, places, strict=True)}


def scientific(value: float, digits: int = 2) -> str:
    """Return a number such as 1.6 × 10¹⁸, without mathtext, whose parser takes longer than the layout."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = f"10{str(int(exponent)).translate(SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


def log_axis(axis: Any, values: Sequence[float], *, room: float = 0.19) -> None:
    """Label values of a log axis as powers of ten, thinned to one per `room` of the axis; mark them all."""
    _ticks(axis, values, room, lambda value, _: scientific(value))


def decade_axis(axis: Any, low: float, high: float, *, room: float = 0.19) -> None:
    """Label round numbers (1, 2, 5 x 10^n, finer if need be) of a log axis between `low` and `high`."""
    _ticks(axis, round_numbers(low, high, (1.0,), (1.0, 3.0)), room, lambda value, _: scientific(value))


def round_numbers(low: float, high: float, *first: tuple[float, ...]) -> list[float]:
    """Return round numbers from `low` to `high`, at least three where a step of a fifth allows it.

    `first` are the mantissas to try before 1, 2, 5.
    """
    steps = [tuple(np.arange(1.0, 10.0, step)) for step in (1.0, 0.2)]
    for subs in (*first, (1.0, 2.0, 5.0), *steps):
        ticks = [t for t in LogLocator(subs=subs).tick_values(low, high) if low <= t <= high]
        if len(ticks) >= 3:
            break
    return ticks


def recurrence_axis(axis: Any, depths: Sequence[float], *, room: float = 0.06, fixed: bool = False) -> None:
    """Label mean recurrences on a log axis; with `fixed` the one at 1 reads "fixed"."""
    _ticks(axis, depths, room, lambda v, _: "fixed" if fixed and abs(v - 1) < 1e-6 else f"{v:g}")


def plain_log_axis(axis: Any) -> None:
    """Label 1, 2 and 5 times powers of ten (finer if need be) as plain numbers on a log axis."""
    ticks = round_numbers(*sorted(axis.get_view_interval()))
    _ticks(axis, ticks, 0.1, lambda value, _: f"{value:.2g}")


def _ticks(axis: Any, values: Sequence[float], room: float, write: Callable[[float, int], str]) -> None:
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(FixedLocator(thinned(values, room * math.log(high / low))))
    axis.set_minor_locator(FixedLocator(sorted(set(values))))
    axis.set_major_formatter(FuncFormatter(write))
    axis.set_minor_formatter(NullFormatter())


def thinned(values: Sequence[float], distance: float) -> list[float]:
    """Return values whose logs lie at least `distance` apart, the first and the last among them."""
    ordered = sorted(set(values))
    kept = ordered[:1]
    for value in ordered[1:]:
        if math.log(value / kept[-1]) >= distance:
            kept.append(value)
    last = ordered[-1]
    if kept[-1] != last and len(kept) > 1:
        kept[-1] = last
    return kept
