"""Ladders of plain transformers: the runs of one, how sizes are counted, and the law of their losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.config import MIN_LADDER_SIZES, Array, FitConfig, ParameterCount
from analysis.format import plural
from analysis.isoflop.group import trunks_of
from analysis.laws.fit import fit_law
from analysis.laws.objective import Objective, minimise_resamples, predict
from analysis.laws.result import LawFit
from analysis.stats.bootstrap import Draws, NoiseLevel, draws, noise_level
from analysis.stats.noise import NoiseFloor
from analysis.tables.schema import TableError

LadderChoice = Literal["depth", "width", "any"]

COUNTINGS: dict[ParameterCount, str] = {
    "all": "all parameters",
    "no_token_embedding": "without token embedding",
    "non_embedding": "without embedding and value tables",
}
LawName = Literal["size", "surface"]
LADDERS: dict[LadderChoice, str] = {
    "depth": "transformers of its number of layers",
    "width": "transformers of its width",
    "any": "transformers of all shapes",
}
SAME_TOKENS = 0.01  # relative difference: whole steps of a batch end apart
SQUARED_ERROR = 10.0  # a Huber delta beyond every residual: noise is normal, sizes are few
# What a ladder has in common with the model beside it; rates may be those of each size.
ALIKE = (
    *("accounting", "vocabulary_size", "sequence_length", "dataset", "optimizer"),
    *("cooldown_fraction", "batch_tokens"),
)
RATES = ("adamw_learning_rate", "muon_learning_rate", "lr_scaling")
SIZE = ("prelude_layers", "width", "n_params_total")


@dataclass(frozen=True, kw_only=True)
class LadderLaw:
    """The law of a ladder's losses over size (and tokens), with resamples and the runs behind it."""

    fit: LawFit
    level: NoiseLevel
    parameters: Array = field(repr=False)  # resampled, in fitted form [resamples, parameters]
    noise: Draws = field(repr=False)
    points: pd.DataFrame = field(repr=False)  # params, tokens, flops_per_token, loss

    def losses(self, params: Array, tokens: Array) -> tuple[Array, Array]:
        """Return the fitted loss at sizes and tokens [points], and the resamples' [resamples, points]."""
        terms = self.fit.model.terms({"params": params, "tokens": tokens})
        return predict(terms, self.fit.fitted[None])[0], predict(terms, self.parameters)

    def spread(self, resampled: Array) -> Array:
        """Return resamples [resamples, points] spread about their medians for the freedom of the noise."""
        middle = np.median(resampled, 0)
        return np.asarray(middle + (resampled - middle) / self.noise.factor(self.level)[:, None])

    def band(self, params: Array, tokens: Array, confidence: float) -> tuple[Array, Array, Array]:
        """Return the fitted loss at sizes and tokens [points] and the ends of its interval there."""
        fitted, drawn = self.losses(params, tokens)
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.spread(drawn), [tail, 1 - tail], axis=0)
        return fitted, low, high

    @cached_property
    def _log_flops(self) -> Callable[[Array], Array]:
        from scipy.interpolate import PchipInterpolator

        sizes, first = np.unique(self.points["params"].to_numpy(float), return_index=True)
        flops = self.points["flops_per_token"].to_numpy(float)[first]
        interpolated: Callable[[Array], Array] = PchipInterpolator(np.log(sizes), np.log(flops))
        return interpolated

    def flops_per_token(self, params: Array | float) -> Array:
        """Return the training FLOPs per token of a size, by a monotone cubic in logs through the ladder's."""
        return np.asarray(np.exp(self._log_flops(np.log(params))))


def counted(runs: pd.DataFrame, counting: ParameterCount) -> Array:
    """Return the parameters of runs [runs] in one way of counting, each loop's once."""
    left_out = {"all": (), "no_token_embedding": ("embedding",)}.get(
        counting, ("embedding", "value_embedding")
    )
    params = runs["n_params_total"].to_numpy(float)
    return np.asarray(params - sum(runs[f"n_params_{part}"].to_numpy(float) for part in left_out))


def ladders(
    runs: pd.DataFrame, model: pd.Series[Any], choice: LadderChoice | None
) -> Iterator[tuple[LadderChoice, pd.DataFrame]]:
    """Yield the ladders beside a model: of its depth and of its width where they have enough sizes, else any.

    Parameters
    ----------
    runs : a runs table.
    model : the row of a run of it.
    choice : the only ladder to take; None: see above.
    """
    alike = np.ones(len(runs), bool)
    for name in ALIKE:
        alike &= (runs[name] == model[name]).to_numpy() | bool(pd.isna(model[name]))
    plain = runs[alike & (runs["kind"] == "transformer") & (_recipes(runs) == _recipe(model["recipe"]))]
    layers = int(model[["prelude_layers", "core_layers", "coda_layers"]].sum())
    found: dict[LadderChoice, pd.DataFrame] = {
        "depth": plain[plain["prelude_layers"] == layers],
        "width": plain[plain["width"] == model["width"]],
        "any": plain,
    }
    if choice is not None:
        yield choice, found[choice]
        return
    enough = [name for name in found if name != "any" and _sizes(found[name]) >= MIN_LADDER_SIZES]
    for name in enough or list(found)[-1:]:
        yield name, found[name]


def at_tokens(ladder: pd.DataFrame, tokens: float) -> pd.DataFrame:
    """Return the runs of a ladder that were trained on so many tokens."""
    return ladder[np.isclose(ladder["tokens"].to_numpy(float), tokens, rtol=SAME_TOKENS)]


def too_few_sizes(ladder: pd.DataFrame, tokens: float | None) -> str | None:
    """Return why no law is fitted to a ladder, None if one is; `tokens` of its runs if all have the same."""
    sizes, at = _sizes(ladder), "" if tokens is None else f" at {tokens:.3g} tokens"
    if sizes < MIN_LADDER_SIZES:
        return f"the ladder has {plural(sizes, 'size')}{at}, at least {MIN_LADDER_SIZES} are needed"
    return several_recipes(ladder)


def several_recipes(ladder: pd.DataFrame) -> str | None:
    """Return why the runs of one size have no common mean, None if each size has one recipe."""
    cell = [*SIZE, "tokens"]
    if len(ladder[[*cell, *RATES, "recipe"]].drop_duplicates()) > len(ladder[cell].drop_duplicates()):
        return "the ladder has several recipes of one size and number of tokens: keep one in the table"
    return None


def fit_ladder(
    ladder: pd.DataFrame,
    errors: Array,
    counting: ParameterCount,
    law: LawName,
    floor: NoiseFloor,
    config: FitConfig,
) -> LadderLaw | str:
    """Fit a law to the ladder's runs by least squares, and to resamples of its noise.

    Parameters
    ----------
    ladder : runs of plain transformers.
    errors : what falls with size [runs]: the loss in nats or bits, one less a score.
    floor : noise of replicate seeds, in the unit of `errors`.

    Returns
    -------
    The law, or why there is none.
    """
    points = pd.DataFrame(
        {
            "params": counted(ladder, counting),
            "tokens": ladder["tokens"].to_numpy(float),
            "flops_per_token": ladder["nominal_flops"].to_numpy(float) / ladder["tokens"].to_numpy(float),
            "loss": errors,
        }
    )
    try:
        fit = fit_law(law, points, errors, delta=SQUARED_ERROR)
    except TableError as error:
        return str(error)
    ids = ladder["run_id"].to_numpy(str)
    fitted = fit.predict(points)
    freedom = len(points) - len(fit.fitted)
    label = f"ladder {law} {counting}"
    noise = draws(config.bootstrap, len(points), config.seed, label, trunks_of(ladder), config.shared_noise)
    squares = float(np.square(errors - fitted).sum())
    level = noise_level(floor, squares, freedom, ids, independent=noise.independent)
    objective = Objective(terms=fit.model.terms(_columns(points)), delta=fit.delta)
    resampled = np.maximum(fitted + noise.noise(level), 1e-3 * fitted.min())
    drawn = minimise_resamples(objective, resampled, fit.fitted, fit.model.bounds, None).parameters
    return LadderLaw(fit=fit, level=level, parameters=drawn, noise=noise, points=points)


def _columns(points: pd.DataFrame) -> dict[str, Array]:
    return {name: points[name].to_numpy(float) for name in ("params", "tokens")}


def _sizes(ladder: pd.DataFrame) -> int:
    return len(ladder[list(SIZE)].drop_duplicates())


def _recipe(text: str) -> str:
    """Return a recipe without the settings of the model, which differ between sizes."""
    return " ".join(word for word in str(text).split() if not word.startswith("model."))


def _recipes(runs: pd.DataFrame) -> pd.Series[str]:
    return runs["recipe"].map({text: _recipe(text) for text in runs["recipe"].unique()})
