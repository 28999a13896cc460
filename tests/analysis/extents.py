"""Texts of a figure that overlap one another or leave the page."""

from __future__ import annotations

from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.text import Text

SLACK = 0.5  # pixels at 100 dpi: antialiasing, not an overlap


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
