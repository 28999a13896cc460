"""Where the optima of a sweep lie by the shipped law of its scale, and the budgets that bring them inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.config.study import StudyConfig, SweepConfig
from sweeps.planning.known_window import Window, everywhere, known_window, outside
from sweeps.planning.new_grid import Grid, inside_grid, shortest
from sweeps.planning.new_sweep import closest_reference, flow, looped_model


@dataclass(frozen=True, kw_only=True)
class OptimaOutside:
    """What a grid misses by the shipped law of its scale."""

    sentence: str
    better: Grid | None  # the cheapest grid with three optima inside, None if there is none

    @property
    def words(self) -> str:
        """Return what is missed, with better budgets or what else to change."""
        if self.better is None:
            return f"{self.sentence}: give mean_recurrences that reach further"
        listed = ", ".join(map(flow, self.better[1]))
        return f"{self.sentence}. Three budgets have it inside, such as {listed}"


def shipped_window(study: StudyConfig) -> Window:
    """Return where the shipped law of the scale has its optima inside, `everywhere` if there is none."""
    if len(study.runs) != 1 or not (study.sweep.budgets_flops and study.sweep.mean_recurrences):
        return everywhere
    (scale,), (run,) = study.runs, study.runs.values()
    if run.model.kind != "looped":
        return everywhere
    return known_window(shortest(study), closest_reference(scale, looped_model(scale)))


def optima_outside(
    study: StudyConfig, window: Window, recurrences: Sequence[int] | None = None, *, vary: bool = False
) -> OptimaOutside | None:
    """Return how many optima lie outside the grid of a study, None if all are inside or no law is known.

    `recurrences` are those of the better grid, by default the study's; `vary` may leave out the deepest.
    """
    swept, budgets = study.sweep.mean_recurrences, study.sweep.budgets_flops
    beyond = outside(swept, budgets, window)
    if not beyond:
        return None
    sentence = (
        f"{beyond} of {len(budgets)} budgets have their optimum at an edge of µ = {min(swept)} to "
        f"{max(swept)} or beyond, by the law of the shipped sweep"
    )
    better = inside_grid(study, list(recurrences or swept), window, vary=vary)
    return OptimaOutside(sentence=sentence, better=better)


def on_budgets(sweep: SweepConfig, budgets: Sequence[float]) -> list[str]:
    """Return the overrides that put a grid on other budgets, its listed cells at those of the same place."""
    old, new = sorted(sweep.budgets_flops), sorted(budgets)

    def moved(flops: float) -> float:
        place = min(range(len(old)), key=lambda index: abs(math.log(old[index] / flops)))
        return new[round(place * (len(new) - 1) / max(len(old) - 1, 1))]

    lengths = {"budgets_flops": new}
    lengths |= {
        f"cells.{name}.lengths": list(dict.fromkeys(moved(float(each)) for each in cells.lengths))
        for name, cells in sweep.cells.items()
        if cells.lengths
    }
    return [f"sweep.{key}=[{','.join(map(flow, each))}]" for key, each in lengths.items()]
