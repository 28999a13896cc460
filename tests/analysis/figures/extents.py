"""Texts of a figure that overlap one another or leave the page, and axes that do not say what they show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.figures.style import ReportFigure, freeze_layout, styled

# Units in brackets or in words. Parameters, tokens and loops are counts that name themselves; an exponent,
# a cost of log losses or a ratio has no unit.
UNIT = re.compile(
    r"\((nats|nats per token|FLOPs|loops|per loop|([\w-]+ )?points|%|millions|loss units|µs|device-hours)\)$"
    r"|^(optimal )?(parameters N|training tokens D|tokens D)\*?$"
    r"|^exponent of|Huber cost of the log loss$|^T / µ$|^FLOPs of fixed / looped"
    r"|^(parameter|compute) multiplier$"
)
SLACK = 0.5  # pixels at 100 dpi: antialiasing, not an overlap


def problems_of(figures: Iterable[ReportFigure]) -> list[str]:
    """Return the problems of figures as they are saved, each after the name of its figure."""
    found = []
    for drawn in figures:
        with styled():
            freeze_layout(drawn.figure)
            drawn.figure.draw_without_rendering()  # legends have no place before
            each = problems(drawn.figure) + unlabelled(drawn.figure)
        found += [f"{drawn.name}: {problem}" for problem in each]
    return found


def problems(figure: Figure) -> list[str]:
    """Return one line per pair of texts that overlap and per text that is clipped, in a figure once drawn."""
    unused = unused_tick_labels(figure)
    boxes = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in unused:
            boxes.append((text.get_text(), text.get_window_extent()))
    width, height = figure.get_size_inches() * figure.dpi
    found = []
    for text, box in boxes:
        if min(box.x0, box.y0) < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            found.append(f"clipped: {text!r}")
    for (one, a), (other, b) in combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > SLACK and min(a.y1, b.y1) - max(a.y0, b.y0) > SLACK:
            found.append(f"overlap: {one!r} and {other!r}")
    return found


def unused_tick_labels(figure: Figure) -> set[int]:
    """Return the ids of tick labels that are kept but not drawn: ticks out of use or outside the view."""
    unused = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            live = {id(tick) for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]}
            for tick in [*axis.majorTicks, *axis.minorTicks]:
                if id(tick) not in live or not low <= tick.get_loc() <= high:
                    unused |= {id(tick.label1), id(tick.label2)}
    return unused


def unlabelled(figure: Figure) -> list[str]:
    """Return one line per axis that neither has a label with a unit nor takes over that of its row or column.

    An axis of names (of cells, of forms of a law) needs none: their letters are not those of numbers.
    """
    found = []
    for place, axes in enumerate(figure.axes):
        for side, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            words = [tick.get_text() for tick in axis.get_ticklabels()]
            if any(re.search("[A-Z]", word) for word in words):
                continue
            label = axis.get_label_text() or shared_label(figure, axes, side)
            if not UNIT.search(label):
                found.append(f"panel {place}, {side}: {label!r}")
    return found


def shared_label(figure: Figure, axes: Axes, side: str) -> str:
    """Return the label that an axis without one shares with the panels of its column (x) or row (y)."""
    of_all = figure.get_supxlabel() if side == "x" else figure.get_supylabel()
    if of_all:
        return of_all
    spec = axes.get_subplotspec()
    for other in figure.axes:
        there = other.get_subplotspec()
        if spec is None or there is None or other is axes:
            continue
        same = there.colspan == spec.colspan if side == "x" else there.rowspan == spec.rowspan
        label = other.get_xlabel() if side == "x" else other.get_ylabel()
        if same and label:
            return label
    return ""
