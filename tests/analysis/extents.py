"""Texts of a figure that overlap one another or leave the page."""

from __future__ import annotations

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

SLACK = 1.0  # pixels at 200 dpi: antialiasing, not an overlap


def problems(figure: Figure) -> list[str]:
    """Return one line per pair of texts that overlap and per text that is clipped."""
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and shown(text):
            boxes.append((text.get_text(), text.get_window_extent(renderer)))
    width, height = figure.get_size_inches() * figure.dpi
    found = []
    for text, box in boxes:
        if min(box.x0, box.y0) < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            found.append(f"clipped: {text!r}")
    for (one, a), (other, b) in combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > SLACK and min(a.y1, b.y1) - max(a.y0, b.y0) > SLACK:
            found.append(f"overlap: {one!r} and {other!r}")
    return found


def shown(text: Text) -> bool:
    """Say whether a text is drawn: hidden axes and ticks outside the view keep their texts."""
    axes = text.axes
    if axes is None:
        return True
    if not axes.get_visible():
        return False
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if text in (tick.label1, tick.label2):
                return bool(low <= tick.get_loc() <= high)
    return True
