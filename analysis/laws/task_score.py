"""From loss to a task's score: the sigmoid that is the second step of the OLMo ladder (arXiv 2412.04403).

The error 1 - score rises with the loss L from that of the best model to that of guessing:
1 - score = e + c / (1 + exp(-k (L - L0))). The error is positive where the score, centred on chance, is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.special import stdtr

from analysis.config import Array, FitConfig
from analysis.format import number, plural, span
from analysis.laws.fit import fit_law
from analysis.laws.intervals import intervals
from analysis.laws.objective import Objective, minimise_resamples, predict
from analysis.laws.result import LawFit
from analysis.serialize import HIDDEN, Result

TASK_LAW = "task_score"
MIN_RUNS = 8
MIN_BUDGETS = 3  # from which the largest is left out and predicted
PER_CENT = 1.5  # no score is higher as a share
VANISHED = 1e-6  # an error at the least loss below this is none
CHANCE = 0.05  # significance of a rise of the score as the loss falls
Ends = tuple[float | None, float | None]  # None: open


@dataclass(frozen=True, kw_only=True)
class ScorePrediction:
    """The errors at the largest budget of a law fitted to the smaller ones, in the score's unit."""

    losses: str  # "measured", or the law that predicted the losses as well
    budget_flops: float
    runs: int
    bias: float  # mean of prediction minus score
    error: float  # mean absolute error

    def summary(self) -> str:
        """Return the errors in one line."""
        at = f"{plural(self.runs, 'run')} of {number(self.budget_flops)} FLOPs"
        how = "their measured losses" if self.losses == "measured" else f"losses predicted by {self.losses}"
        gap = f"{number(self.bias, 2)}, {number(self.error, 2)}"
        return f"left out, {at}, from {how}: prediction minus score, mean and mean size: {gap}"


@dataclass(frozen=True, kw_only=True, repr=False)
class TaskLaw(Result):
    """The score of a task over the loss, its prediction of the largest budget, or the reason for none."""

    task: str
    runs: int
    parameters: dict[str, float] = field(default_factory=dict)  # of the score: chance, ceiling, k, L0
    intervals: dict[str, Ends] = field(default_factory=dict)
    rms: float | None = None  # in the score's unit
    undetermined: tuple[str, ...] = ()
    predictions: tuple[ScorePrediction, ...] = ()
    refusal: str | None = None
    notes: tuple[str, ...] = ()
    fit: LawFit | None = field(default=None, repr=False, compare=False, metadata=HIDDEN)

    def predict(self, losses: Array) -> Array:
        """Return the score at losses in nats; raises ValueError where the law is refused."""
        return 1 - self._fit().predict({"loss": np.asarray(losses, float)})

    def band(self, losses: Array, confidence: float = 0.95) -> tuple[Array, Array]:
        """Return the pointwise interval of the score at losses in nats."""
        low, high = self._fit().band({"loss": np.asarray(losses, float)}, confidence)
        return 1 - high, 1 - low

    def _fit(self) -> LawFit:
        if self.fit is None:
            raise ValueError(f"no law of {self.task} over the loss: {self.refusal}")
        return self.fit

    def summary(self) -> str:
        """Return the law, or its refusal, and the errors of its predictions."""
        head = f"Loss to task: {self.task}, {plural(self.runs, 'run')}"
        if self.refusal is not None:
            return "\n".join([f"{head}: refused: {self.refusal}", *(f"  {note}" for note in self.notes)])
        values = (
            f"{name} not identified"
            if self.intervals[name] == (None, None)
            else f"{name} {number(value)} {span(*self.intervals[name])}"
            for name, value in self.parameters.items()
        )
        lines = [
            f"{head}: chance + (ceiling - chance) / (1 + exp(k (L - L0))) (arXiv 2412.04403)",
            f"  {', '.join(values)}, rms {number(self.rms, 2)}",
            *(f"  {text}" for text in (*self.undetermined, *self.notes)),
        ]
        return "\n".join([*lines, *(f"  {row.summary()}" for row in self.predictions)])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per parameter: value, low and high."""
        rows = {name: (value, *self.intervals[name]) for name, value in self.parameters.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"], dtype=float)

    def at_level(self, level: float) -> TaskLaw:
        """Return the law with its intervals at another level; raises ValueError where it is refused."""
        fit = self._fit()
        resampled = (fit.draws, None, level, fit.covariance)
        ends = intervals(fit.model, fit.model.terms(fit.data), fit.fitted, *resampled)
        fit = replace(fit, intervals=ends)
        return replace(self, fit=fit, intervals=_of_the_score(fit, level)[1])

    @property
    def cov(self) -> pd.DataFrame:
        """Return the covariance of the parameters over the resamples; raises ValueError where refused."""
        return pd.DataFrame(_named(self._fit(), self._fit().draws)).cov()

    @property
    def resid(self) -> pd.Series:
        """Return score minus fitted score of the runs; raises ValueError where the law is refused."""
        return -self._fit().resid


def fit_task_score(
    task: str, points: pd.DataFrame, config: FitConfig, notes: tuple[str, ...] = ()
) -> TaskLaw:
    """Fit the score of a task over the loss.

    Parameters
    ----------
    task, notes : its name and remarks, as printed.
    points : one row per run: loss (nats) and score (1 is perfect; above `PER_CENT` it is taken as per cent);
        budget_flops, from which the largest is left out and predicted; loss_predicted, the loss of those runs
        by `loss_law`, a law that does not know them.

    Returns
    -------
    The law, or the reason for its refusal: too few runs, no spread of the loss, or scores that do not rise as
    the loss falls, as at chance.
    """
    points = points[np.isfinite(points["score"].astype(float)) & np.isfinite(points["loss"].astype(float))]
    if len(points) and points["score"].max() > PER_CENT:
        points, notes = points.assign(score=points["score"] / 100), (*notes, "scores are read as per cent")
    refusal = _refusal(points)
    if refusal is not None:
        return TaskLaw(task=task, runs=len(points), refusal=refusal, notes=notes)
    fit = _sigmoid(points, config)
    if not fit.certificate.holds:
        reason = f"no optimum was reached ({fit.certificate}): the runs do not determine the sigmoid"
        return TaskLaw(task=task, runs=len(points), refusal=reason, notes=notes)
    parameters, ends = _of_the_score(fit, config.confidence)
    return TaskLaw(
        task=task,
        runs=len(points),
        parameters=parameters,
        intervals=ends,
        rms=fit.rms_nats,
        undetermined=fit.undetermined,
        predictions=_predictions(points, config),
        notes=notes,
        fit=fit,
    )


def _refusal(points: pd.DataFrame) -> str | None:
    if len(points) < MIN_RUNS:
        return f"{plural(len(points), 'run')} with a score, at least {MIN_RUNS} are needed"
    if points["score"].max() >= 1:
        return f"a score is {points['score'].max():g}: the error 1 - score must be positive"
    if not (points["loss"] > 0).all():
        return f"a loss is {points['loss'].min():g}: losses must be positive"
    loss, score = (points[name].to_numpy(float) for name in ("loss", "score"))
    if len(np.unique(loss)) < 4:
        return f"{len(np.unique(loss))} distinct losses, at least 4 are needed"
    centred = loss - loss.mean()
    slope = float(centred @ score / (centred @ centred))
    residual = score - score.mean() - slope * centred
    freedom = len(loss) - 2
    error = float(np.sqrt(residual @ residual / freedom / (centred @ centred)))
    if slope >= 0 or stdtr(freedom, slope / max(error, 1e-300)) > CHANCE / 2:
        spread = 2 * float(np.std(score)) / np.sqrt(len(score))
        at = "the scores are at chance" if abs(score.mean()) <= spread else "the score does not rise"
        return f"{at} as the loss falls from {loss.max():.3g} to {loss.min():.3g} nats"
    return None


def _sigmoid(points: pd.DataFrame, config: FitConfig, resample: bool = True) -> LawFit:
    """Fit the error over the loss by least squares; `resample` for intervals."""
    errors = 1 - points["score"].to_numpy(float)
    label = {"stratified": "budget_flops", "block": "block"}.get(config.resampling)
    drawn = resample and config.resampling != "noise"
    fit = fit_law(
        TASK_LAW,
        points,
        errors,
        delta=np.inf,
        log_loss=False,
        bootstrap=config.bootstrap if drawn else 0,
        resampling=config.resampling if drawn else "pairs",
        labels=points[label].to_numpy(str) if drawn and label in points else None,
        seed=config.seed,
        confidence=config.confidence,
    )
    return fit if drawn or not resample else _with_noise(fit, config)


def _with_noise(fit: LawFit, config: FitConfig) -> LawFit:
    """Return the fit with resamples: normal noise around it, spread as the estimate of its size is."""
    terms, rng = fit.model.terms(fit.data), np.random.default_rng(config.seed)
    fitted = predict(terms, fit.fitted[None])[0]
    freedom = len(fitted) - len(fit.fitted)
    size = np.sqrt(np.sum((fitted - fit.losses) ** 2) / rng.chisquare(freedom, config.bootstrap))
    errors = fitted + size[:, None] * rng.standard_normal((config.bootstrap, len(fitted)))
    objective = Objective(terms=terms, delta=np.inf, log_loss=False)
    draws = minimise_resamples(objective, errors, fit.fitted, fit.model.bounds, None).parameters
    ends = intervals(fit.model, terms, fit.fitted, draws, None, config.confidence, fit.covariance)
    return replace(fit, draws=draws, intervals=ends, resampling=f"{config.bootstrap} resamples of noise")


def _of_the_score(fit: LawFit, confidence: float) -> tuple[dict[str, float], dict[str, Ends]]:
    """Return chance, ceiling, k and L0 with percentile intervals, open where those of the error are."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    sources = {"chance": ("e", "c"), "ceiling": ("e",), "k": ("k",), "L0": ("L0",)}
    values = {name: float(value[0]) for name, value in _named(fit, fit.fitted[None]).items()}
    ends: dict[str, Ends] = {}
    for name, drawn in _named(fit, fit.draws).items():
        low, high = (float(end) for end in np.quantile(drawn, tails))
        turn = -1 if name in ("chance", "ceiling") else 1  # the upper end of an error is the score's lower
        is_open = [[end is None for end in fit.intervals[source]][::turn] for source in sources[name]]
        no_low, no_high = np.any(is_open, 0)
        if name == "ceiling":  # a perfect score is where the search ends, not what the scores bend towards
            no_high |= bool(np.mean(1 - drawn < VANISHED) > tails[0])
            no_low |= 1 - values[name] < VANISHED
        ends[name] = (None if no_low else low, None if no_high else high)
    return values, ends


def _named(fit: LawFit, rows: Array) -> dict[str, Array]:
    """Return the parameters of the score from those of the error [rows]."""
    public = fit.model.public(rows)
    ceiling = 1 - public["e"]
    return {"chance": ceiling - public["c"], "ceiling": ceiling, "k": public["k"], "L0": public["L0"]}


def _predictions(points: pd.DataFrame, config: FitConfig) -> tuple[ScorePrediction, ...]:
    """Predict the scores of the largest budget from the runs of the smaller ones."""
    if "budget_flops" not in points or points["budget_flops"].nunique() < MIN_BUDGETS:
        return ()
    largest = float(points["budget_flops"].max())
    rest, out = points[points["budget_flops"] < largest], points[points["budget_flops"] == largest]
    if _refusal(rest) is not None:
        return ()
    fit = _sigmoid(rest, config, resample=False)
    law = str(out["loss_law"].iloc[0]) if "loss_law" in out else ""
    rows = []
    for column, losses in (("loss", "measured"), ("loss_predicted", law)):
        known = out[out[column].notna()] if column in out else out[:0]
        if len(known):
            predicted = 1 - fit.predict({"loss": known[column].to_numpy(float)})
            gap = predicted - known["score"].to_numpy(float)
            bias, error = float(gap.mean()), float(np.abs(gap).mean())
            rows.append(
                ScorePrediction(losses=losses, budget_flops=largest, runs=len(known), bias=bias, error=error)
            )
    return tuple(rows)
