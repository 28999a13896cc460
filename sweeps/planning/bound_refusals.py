"""What `fit` and `compare` are bound to refuse of a planned sweep, by their own rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def bound_refusals(rows: Sequence[Mapping[str, Any]], max_depth: int) -> list[str]:
    """Return one line for each law or comparison that no loss of these runs can save.

    Parameters
    ----------
    rows : the plan's cells on budgets, with their verdicts (see `plan`).
    max_depth : largest test-time depth at which the runs will be evaluated.
    """
    used = _distinct([row for row in rows if row["verdict"] == "OK"])
    looped = used[used["kind"] == "looped"]
    if looped.empty:
        return []
    notes = [
        f"{scale}: {note}"
        for scale, cells in used.groupby("scale", sort=False)
        if (cells["kind"] == "looped").any()
        for note in (*_laws_of_one_recipe(cells[cells["kind"] == "looped"]), *_control(cells))
    ]
    return [*notes, *_iso_depth_law(used), *_depth_curves(looped, max_depth), *_noise(used)]


def ladder_refusals(rows: Sequence[Mapping[str, Any]], sizes: int) -> list[str]:
    """Return a line if a looped run has too few plain transformers at its tokens.

    Parameters
    ----------
    rows : the plan's cells with their verdicts (see `plan`).
    sizes : of the ladder.
    """
    from analysis.config import MIN_LADDER_SIZES

    kept = [row for row in rows if row["verdict"] == "OK"]
    plain = [row for row in kept if row["kind"] == "transformer"]
    least = min(
        (
            len({row["scale"] for row in plain if row["tokens"] == looped["tokens"]})
            for looped in kept
            if looped["kind"] == "looped"
        ),
        default=sizes,
    )
    if least >= MIN_LADDER_SIZES:
        return []
    return [
        f"compare against=transformer is bound to refuse a looped run at equal tokens. It needs "
        f"{MIN_LADDER_SIZES} sizes of transformers there; {least} of {sizes} are not dropped"
    ]


def _distinct(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the cells, each once: its settings, the list `seed` and the number of `runs`."""
    import pandas as pd

    from analysis.tables.selection import CELL

    seeds: dict[tuple[Any, ...], list[int]] = {}
    settings = itemgetter(*CELL)
    for row in rows:
        seeds.setdefault(settings(row), []).append(row["seed"])
    frame = pd.DataFrame(list(seeds), columns=list(CELL))
    return frame.assign(
        seed=pd.Series(list(seeds.values()), dtype=object), runs=[len(each) for each in seeds.values()]
    )


def _laws_of_one_recipe(looped: pd.DataFrame) -> Iterator[str]:
    """Yield the refusals of one scale. Cells of one recipe make a curve per budget on f(µ, µ / 2)."""
    from analysis.config import MIN_CURVES, MIN_SURFACE_RUNS, MIN_SURFACE_VALUES
    from analysis.isoflop.geometry import MIN_BUDGETS, MIN_SWEPT, backprop_share, on_isoflop_curve
    from analysis.tables.selection import groups

    enough = runs = values = 0  # of the recipe that has most
    for _, group in groups(looped):
        curve = group[on_isoflop_curve(group, backprop_share(group))]
        swept = curve.groupby("target_flops")["mean_recurrence"].nunique()
        enough = max(enough, int((swept >= MIN_SWEPT).sum()))
        runs = max(runs, int(group["runs"].sum()))
        values = max(values, min(group[name].nunique() for name in ("mean_recurrence", "tokens")))
    if enough < MIN_BUDGETS:
        yield (
            f"fit is bound to refuse laws of the optimal recurrence and tokens. They need {MIN_BUDGETS} "
            f"budgets with {MIN_SWEPT} or more recurrences on the curve (even µ); {enough} of "
            f"{looped['target_flops'].nunique()} have them"
        )
    if runs < MIN_SURFACE_RUNS or values < MIN_SURFACE_VALUES:
        yield (
            f"fit is bound to refuse the surface. It needs {MIN_SURFACE_RUNS} looped runs of one recipe at "
            f"{MIN_SURFACE_VALUES} recurrences and token counts; there are {runs} at {values}"
        )
    if runs < MIN_CURVES:
        yield (
            f"fit is bound to refuse the unified law of depth curves. It needs {MIN_CURVES} looped runs of "
            f"one recipe; there are {runs}"
        )


def _control(cells: pd.DataFrame) -> Iterator[str]:
    from analysis.format import number

    kinds = cells.groupby("target_flops")["kind"].unique()
    looped = {
        float(str(flops)): "fixed" in set(found) for flops, found in kinds.items() if "looped" in set(found)
    }
    alone = [number(flops) for flops, controlled in looped.items() if not controlled]
    if not alone:
        return
    remedy = "sweep.control=fixed"
    if len(alone) < len(looped):
        remedy = (
            f"{', '.join(alone)}. Add them to sweep.budgets_flops, or give the cells of sweep.cells lengths "
            "that are there"
        )
    yield (
        f"compare is bound to leave out {len(alone)} of {len(looped)} budgets, which have no fixed-depth "
        f"control: {remedy}"
    )


def _iso_depth_law(used: pd.DataFrame) -> Iterator[str]:
    """Yield what the runs of no accounting and arm determine."""
    from analysis.config import MIN_ISO_DEPTH_RUNS
    from analysis.tables.arms import axes, axis_values

    # Without seeds, which make the table long, more axes may seem to vary, never fewer.
    varied = axes(used.assign(seed=0)) and axes(used.explode("seed"))
    arms = [axis_values(used, name).astype(str) for name in varied]
    pools = [pool for _, pool in used.groupby([used["accounting"], *arms], sort=False)]
    runs = max(int(pool["runs"].sum()) for pool in pools)
    sizes, recurrences = (
        max(pool[name].nunique() for pool in pools) for name in ("scale", "mean_recurrence")
    )
    if runs < MIN_ISO_DEPTH_RUNS:
        yield (
            f"fit is bound to refuse the iso-depth law. It needs {MIN_ISO_DEPTH_RUNS} runs of one recipe; "
            f"there are {runs}"
        )
    elif sizes < 2 or recurrences < 2:
        lacking = [
            *(["two recurrences"] if recurrences < 2 else []),
            *([f"two sizes (sweep.scales=[{used['scale'].iloc[0]},...])"] if sizes < 2 else []),
        ]
        yield f"fit leaves phi of the iso-depth law open, for which it needs {' and '.join(lacking)}"


def _depth_curves(looped: pd.DataFrame, max_depth: int) -> Iterator[str]:
    from analysis.config import MIN_DEPTHS, MIN_RATE_RECURRENCES, MIN_RATES

    if max_depth < MIN_DEPTHS:
        yield (
            f"fit is bound to refuse every law of test-time depth. It needs {MIN_DEPTHS} depths; "
            f"evaluation.max_depth={max_depth}"
        )
        return
    recurrences = looped["mean_recurrence"].nunique()
    runs = int(looped["runs"].sum())
    if runs < MIN_RATES or recurrences < MIN_RATE_RECURRENCES:
        yield (
            f"fit is bound to refuse the law of the depth rate z over µ. It needs {MIN_RATES} looped runs at "
            f"{MIN_RATE_RECURRENCES} recurrences; there are {runs} at {recurrences}"
        )


def _noise(used: pd.DataFrame) -> Iterator[str]:
    if used["seed"].map(lambda seeds: len(set(seeds)) < 2).all():
        yield (
            "compare is bound to give no interval and no verdict: no cell has two seeds, which measure the "
            "training noise"
        )
