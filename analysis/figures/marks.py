"""Marks on a panel: intervals, arrows, and labels that do not touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style


def whisker(
    ax: Axes,
    at: float,
    ends: Sequence[float | None],
    limits: Sequence[float],
    *,
    color: Any,
    width: float = 0.7,
    horizontal: bool = False,
) -> None:
    """Draw an interval within `limits`: capped where it ends, an arrowhead where it is open or goes on."""
    cut = ends[0] is None or ends[0] < limits[0], ends[1] is None or ends[1] > limits[1]
    inside = [limit if end is None else end for end, limit in zip(ends, limits, strict=True)]
    shown = np.clip(np.array(inside, float), limits[0], limits[1])
    heads, cap = ("<>", "|") if horizontal else ("v^", "_")
    for place, points in (("", shown), *((heads[k] if cut[k] else cap, shown[k : k + 1]) for k in (0, 1))):
        pair = [points, [at] * len(points)] if horizontal else [[at] * len(points), points]
        ax.plot(*pair, color=color, linewidth=width, marker=place, markersize=2.8, clip_on=False)


def arrow(ax: Axes, at: float, start: float, tip: float, color: Any) -> None:
    """Point from the end of a range to what lies beyond it."""
    props = {"arrowstyle": "->", "color": color, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (at, tip), (at, start), annotation_clip=False, arrowprops=props)


def end_labels(ax: Axes, labels: Sequence[tuple[float, str]], heading: str) -> None:
    """Write (y, text) beside the right end of a panel under a heading, moved apart where they would touch."""
    rows = sorted(labels)
    rows.append((rows[-1][0], heading))
    texts = [
        ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5)
        for y, text in rows
    ]
    separate_labels(ax, texts)


def separate_labels(ax: Axes, texts: Sequence[Any]) -> None:
    """Move annotations, given in ascending order of y, apart until no two touch."""
    if len(texts) < 2:
        return
    style.lay_out(cast(Figure, ax.figure))
    left = ax.get_xlim()[0]
    wanted = [float(ax.transData.transform((left, text.xy[1]))[1]) for text in texts]
    gap = 1.2 * max(text.get_window_extent().height for text in texts)
    for text, pixel in zip(texts, separated(wanted, gap), strict=True):
        y = float(ax.transData.inverted().transform((0.0, pixel))[1])
        text.xy = (text.xy[0], y)
        text.set_position(text.xy)


def separated(wanted: Sequence[float], gap: float) -> list[float]:
    """Return the positions nearest to `wanted`, in its order, that are at least `gap` apart.

    Least squares under an ordering of positions less multiples of the gap: pool adjacent violators.
    """
    shifted = [float(v) for v in np.asarray(wanted, float) - gap * np.arange(len(wanted))]
    blocks: list[list[float]] = []
    for value in shifted:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean_a, size_a), (mean_b, size_b) = blocks[-2], blocks[-1]
            blocks[-2:] = [[(mean_a * size_a + mean_b * size_b) / (size_a + size_b), size_a + size_b]]
    flat = [mean for mean, size in blocks for _ in range(int(size))]
    return [mean + gap * place for place, mean in enumerate(flat)]
