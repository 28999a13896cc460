"""The parameter multiplier: how large a plain transformer has the quality of a looped model.

The ladder's law, fitted to transformers of the same data and recipe, is read at the looped model's loss: at
its tokens, and at its training FLOPs. Scores are read in the same way, as one less the score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis.compare.arm_differences import Estimate
from analysis.compare.equal_size import equal_size, gap_share, size_path
from analysis.compare.ladder import (
    COUNTINGS,
    SIZE,
    LadderChoice,
    LadderLaw,
    LawName,
    at_tokens,
    counted,
    fit_ladder,
    ladders,
    several_recipes,
    too_few_sizes,
)
from analysis.compare.multiplier_comparison import (
    Equal,
    EqualSize,
    GapShare,
    ModelWorth,
    MultiplierComparison,
)
from analysis.config import Array, FitConfig, ParameterCount
from analysis.stats.bootstrap import REPLICATES, NoiseLevel
from analysis.stats.noise import NoiseFloor, noise_floor
from analysis.tables.schema import TableError
from analysis.tables.selection import CELL, by_columns, digest, groups, select

# Column of the runs table by measure; bits per byte are the loss times a constant of the data.
MEASURES = {
    "loss": "val_loss_nats",
    "Core": "core",
    "Core-Extended": "core_extended",
}
SCORES = ("Core", "Core-Extended")
MATCHED = 1.02  # a size of at most so many times the model's parameters is not the next larger one


@dataclass(frozen=True, kw_only=True)
class _Study:
    """The runs, the noise of every measure and the laws fitted so far."""

    runs: pd.DataFrame
    floors: dict[str, NoiseFloor]
    config: FitConfig
    laws: dict[Any, LadderLaw | str] = field(default_factory=dict)

    def law(
        self, ladder: pd.DataFrame, measure: str, counting: ParameterCount, tokens: float | None
    ) -> LadderLaw | str:
        """Return the law of a ladder's runs at some tokens, or over all its tokens, fitted once."""
        scored = ladder[ladder[MEASURES[measure]].notna()]
        rows = scored if tokens is None else at_tokens(scored, tokens)
        key = measure, counting, tokens is None, tuple(rows["run_id"])
        if key not in self.laws:
            reason = too_few_sizes(rows, tokens)
            if (
                reason is None
                and tokens is None
                and len(at_tokens(rows, rows["tokens"].iloc[0])) == len(rows)
            ):
                reason = "the ladder was trained on one number of tokens: sweep.ladder.equal=[tokens,flops]"
            form: LawName = "surface" if tokens is None else "size"
            self.laws[key] = reason or fit_ladder(
                rows, errors(rows, measure), counting, form, self.floors[measure], self.config
            )
        return self.laws[key]


def compare_with_transformers(
    runs: pd.DataFrame, config: FitConfig | None = None, ladder: LadderChoice | None = None
) -> MultiplierComparison:
    """Compare every looped and fixed-depth model with ladders of plain transformers.

    Parameters
    ----------
    runs : runs table (schema.RUNS), the ladder's among them.
    ladder : the only ladder to take; None: those of the model's depth and of its width that have enough
        sizes, else transformers of all shapes.

    Raises
    ------
    TableError : the table is malformed or empty, or holds no transformer or no other model.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    used = selection.runs
    plain = used["kind"] == "transformer"
    if not plain.any():
        raise TableError(
            "against=transformer: no run is a plain transformer; sweep.ladder adds them to a sweep"
        )
    if plain.all():
        raise TableError("against=transformer: all runs are plain transformers, none is looped")
    floors = {
        measure: noise_floor(used.assign(val_loss_nats=errors(used, measure))[used[column].notna()])
        for measure, column in MEASURES.items()
        if used[column].notna().any()
    }
    study = _Study(runs=used, floors=floors, config=config)
    models = []
    for label, frame in groups(used[~plain].reset_index(drop=True)):
        for _, cell in by_columns(frame, CELL):
            for choice, rungs in ladders(used, cell.iloc[0], ladder):
                models.append(_worth(study, label, cell, choice, rungs))
    return MultiplierComparison(
        config=config,
        runs_digest=digest(runs),
        noise=floors["loss"],
        models=tuple(models),
        left_out=selection.left_out,
        table=used,
        again=partial(compare_with_transformers, runs, ladder=ladder),
    )


def has_ladder(runs: pd.DataFrame, config: FitConfig) -> bool:
    """Return True if usable runs are plain transformers beside others."""
    kinds = select(runs, config.max_epochs).runs["kind"]
    return bool((kinds == "transformer").any() and (kinds != "transformer").any())


def errors(runs: pd.DataFrame, measure: str) -> Array:
    """Return what falls as a measure gets better [runs]: the loss, or one less the score."""
    values = runs[MEASURES[measure]].to_numpy(float)
    return 1 - values if measure in SCORES else values


def _worth(
    study: _Study, label: str, cell: pd.DataFrame, choice: LadderChoice, ladder: pd.DataFrame
) -> ModelWorth:
    """Return one cell beside one ladder, in every measure that all its runs have."""
    first = cell.iloc[0]
    depth = f"µ = {first['mean_recurrence']:g}" if first["kind"] == "looped" else "fixed depth"
    measures = [name for name, column in MEASURES.items() if cell[column].notna().all()]
    tokens, flops = (float(cell[name].mean()) for name in ("tokens", "nominal_flops"))
    name, bits = f"{label}, {depth}", cell["val_bits_per_byte"].dropna()
    rows = [
        _equal(study, cell, ladder, measure, counting, equal, f"{name} {choice}")
        for equal in ("tokens", "FLOPs")
        for measure in measures
        for counting in COUNTINGS
    ]
    return ModelWorth(
        label=name,
        kind=str(first["kind"]),
        ladder=choice,
        sizes=tuple(dict.fromkeys(ladder.sort_values("n_params_total")["scale"])),
        mean_recurrence=float(first["mean_recurrence"]),
        tokens=tokens,
        flops=flops,
        runs=len(cell),
        values={measure: float(cell[MEASURES[measure]].mean()) for measure in measures},
        bits_per_byte=float(bits.mean()) if len(bits) else None,
        rows=tuple(rows),
        gaps=tuple(_gap(study, cell, ladder, measure) for measure in measures),
    )


def _equal(
    study: _Study,
    cell: pd.DataFrame,
    ladder: pd.DataFrame,
    measure: str,
    counting: ParameterCount,
    equal: Equal,
    label: str,
) -> EqualSize:
    tokens, flops = (float(cell[name].mean()) for name in ("tokens", "nominal_flops"))
    own = float(counted(cell, counting)[0])
    named: dict[str, Any] = {"measure": measure, "counting": counting, "equal": equal, "params": own}
    law = study.law(ladder, measure, counting, tokens if equal == "tokens" else None)
    if isinstance(law, str):
        refused = Estimate(refusal=law)
        return EqualSize(size=refused, multiplier=refused, flops_ratio=refused, **named)
    path = size_path(law, tokens=tokens) if equal == "tokens" else size_path(law, flops=flops)
    reached = float(errors(cell, measure).mean())
    size = equal_size(law, path, reached, len(cell), study.config, f"{label} {measure} {equal}")
    trained = tokens if equal == "tokens" else None

    def ratio(params: float) -> float:
        return 1.0 if trained is None else flops / (trained * float(law.flops_per_token(params)))

    return EqualSize(
        size=size,
        multiplier=_mapped(size, lambda params: params / own),
        flops_ratio=_mapped(size, ratio),
        noise=law.level,
        law=law,
        **named,
    )


def _mapped(size: Estimate, function: Callable[[float], float]) -> Estimate:
    """Return a monotone function of an estimate."""
    if size.value is None:
        return size
    low, high = (None if end is None else function(end) for end in (size.low, size.high))
    falls = function(size.value * 1.001) < function(size.value)
    return Estimate(value=function(size.value), low=high if falls else low, high=low if falls else high)


def _gap(study: _Study, cell: pd.DataFrame, ladder: pd.DataFrame, measure: str) -> GapShare:
    """Return the share of the gap between the two sizes of the ladder that enclose the model's."""
    tokens, own = float(cell["tokens"].mean()), float(cell["n_params_total"].iloc[0])
    pair = _enclosing(at_tokens(ladder[ladder[MEASURES[measure]].notna()], tokens), own)
    if pair is None:
        return GapShare(
            measure=measure,
            smaller="the size below",
            larger="the next",
            share=Estimate(refusal="no two sizes of the ladder at these tokens enclose the model's"),
        )
    smaller, larger = (str(frame["scale"].iloc[0]) for frame in pair)
    if refusal := several_recipes(pd.concat(pair)):
        return GapShare(measure=measure, smaller=smaller, larger=larger, share=Estimate(refusal=refusal))
    means = [float(errors(frame, measure).mean()) for frame in (*pair, cell)]
    runs = [len(frame) for frame in (*pair, cell)]
    share = gap_share(means, runs, _run_noise(study, ladder, measure, tokens), study.config)
    return GapShare(measure=measure, smaller=smaller, larger=larger, share=share)


def _enclosing(rungs: pd.DataFrame, own: float) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the runs of the largest size not above a model's and of the next; None unless both are there."""
    sizes = [frame for _, frame in rungs.groupby(list(SIZE))]
    sizes.sort(key=lambda frame: float(frame["n_params_total"].iloc[0]))
    for smaller, larger in pairwise(sizes):
        if smaller["n_params_total"].iloc[0] <= MATCHED * own < larger["n_params_total"].iloc[0]:
            return smaller, larger
    return None


def _run_noise(study: _Study, ladder: pd.DataFrame, measure: str, tokens: float) -> NoiseLevel | None:
    """Return the noise of one run by replicate seeds, else by the ladder about its law; None: unknown."""
    floor = study.floors[measure]
    if floor.sd_nats is None:
        law = study.law(ladder, measure, "all", tokens)
        return None if isinstance(law, str) else law.level
    return NoiseLevel(sd_nats=floor.sd_nats, degrees_of_freedom=floor.degrees_of_freedom, source=REPLICATES)
