"""`fit`: all laws of a study from its two tables, with intervals, refusals and sanity checks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis import serialize
from analysis.config import FitConfig, Progress
from analysis.format import plural
from analysis.isoflop.curves import QUANTITY_NAMES
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR
from analysis.isoflop.exponents import IsoflopResult
from analysis.isoflop.group import GroupFit, Values, fit_groups
from analysis.laws.task_score import TaskLaw
from analysis.serialize import HIDDEN, WHEN_SET
from analysis.stats.noise import NoiseFloor, noise_floor
from analysis.study.cross_run_laws import CrossRunLaw, cross_run_laws, training_points
from analysis.study.depth import DepthStudy, depth_study
from analysis.study.envelope import Envelope, envelopes
from analysis.study.holdout import Holdout, holdout
from analysis.study.sensitivity import Variant, sensitivity, variants_summary
from analysis.study.task_scores import task_laws
from analysis.tables.schema import DEPTHS, conform
from analysis.tables.selection import LeftOut, digest, select

RESULT_VERSION = 2
FLOOR_MULTIPLE = 3.0  # of the noise floor: what the largest budget must gain over the smallest


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """One fact that holds in every sound study: whether it holds (None: unknown), and the numbers."""

    name: str
    holds: bool | None
    numbers: str

    def summary(self) -> str:
        """Return the verdict, the fact and its numbers."""
        verdict = {True: "yes", False: "NO", None: "cannot tell"}[self.holds]
        return f"{verdict}: {self.name} ({self.numbers})"


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyFit(IsoflopResult):
    """All laws of a study, the refusals with their reasons, and the digests of the tables."""

    version: int = RESULT_VERSION
    config: FitConfig
    runs_digest: str
    depths_digest: str
    runs_used: int
    noise: NoiseFloor
    groups: tuple[GroupFit, ...]
    depth: DepthStudy
    run_laws: tuple[CrossRunLaw, ...]  # the iso-depth law and the unified law
    task_laws: tuple[TaskLaw, ...] = field(default=(), metadata=WHEN_SET)  # of the suites with scores
    validation: Holdout | None = None  # None: not requested
    sensitivity: tuple[Variant, ...] | None = None
    envelopes: tuple[Envelope, ...] = field(default=(), metadata=WHEN_SET)  # over axes of the recipe
    checks: tuple[SanityCheck, ...]
    left_out: tuple[LeftOut, ...]
    skipped: tuple[str, ...]  # groups without an isoFLOP curve, and why
    runs: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)
    depths: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)

    def summary(self) -> str:
        """Return the whole result as plain text."""
        lines = [
            f"{plural(self.runs_used, 'run')} used, {len(self.left_out)} left out "
            f"(tables {self.runs_digest}, {self.depths_digest})",
            self.noise.summary(),
            *(f"  left out: {item.run_id}, {item.reason}" for item in self.left_out),
            *(f"  skipped: {item}" for item in self.skipped),
        ]
        for group in self.groups:
            size = f"{plural(group.runs, 'run')} at {plural(len(group.budgets_flops), 'budget')}"
            lines += ["", f"{group.label}: {size}", group.summary()]
        parts = [
            *(item.summary() for item in self.envelopes),
            self.depth.summary(),
            *(law.summary() for law in self.run_laws),
            *(law.summary() for law in self.task_laws),
        ]
        if self.validation is not None:
            parts.append(self.validation.summary())
        if self.sensitivity is not None:
            parts.append(variants_summary(self.sensitivity))
        parts.append("\n".join(["Checks", *(f"  {check.summary()}" for check in self.checks)]))
        return "\n".join([*lines, *(line for part in parts for line in ("", part))])

    def at_level(self, level: float) -> StudyFit:
        """Return the study with the intervals of its isoFLOP laws at another level of confidence."""
        return replace(self, groups=tuple(group.at_level(level) for group in self.groups))

    def fitted_groups(self) -> tuple[GroupFit, ...]:
        """Return the groups."""
        return self.groups

    def headlines(self) -> list[str]:
        """Return the laws, or the refusals with their reasons, in three lines and one per envelope."""
        lines = []
        for quantity in self.groups[0].quantities if self.groups else ():
            laws = [f"{group.label}: {group.headline(quantity)}" for group in self.groups]
            lines.append(f"Optimal {QUANTITY_NAMES[quantity]}, {'; '.join(laws)}")
        if not lines:
            lines.append(f"No isoFLOP law: {'; '.join(self.skipped)}")
        lines += [line for item in self.envelopes for line in item.headlines()]
        return [*lines, f"Test-time depth: {self.depth.headline()}"]

    def predict(self, flops: Values, estimator: str = DEFAULT_ESTIMATOR) -> pd.DataFrame:
        """Return optimal recurrence and tokens at budgets of `flops`, and L* there, per group.

        A group whose estimator has no power law is left out (see `GroupFit.predict`).

        Raises
        ------
        ValueError : no group has a power law; the message is the first refusal.
        """
        tables, refused = [], []
        for group in self.groups:
            try:
                rows = group.predict(flops, estimator)
            except ValueError as error:
                refused.append(f"{group.label}: {error}")
                continue
            rows.insert(0, "group", group.label)
            tables.append(rows)
        if not tables:
            raise ValueError((refused or ["no group of runs lies on isoFLOP curves"])[0])
        return pd.concat(tables, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the result as JSON text, the same bytes for the same tables and seed."""
        return serialize.to_json(self)


def fit(
    runs: pd.DataFrame,
    depths: pd.DataFrame,
    config: FitConfig | None = None,
    progress: Progress = lambda stage, done: None,
) -> StudyFit:
    """Fit every law of a study from its runs and depth tables.

    Parameters
    ----------
    runs, depths : tables as `read_tables` returns them (schema.RUNS, schema.DEPTHS).
    config : with `validation` the result includes held-out predictions and the sensitivity of the exponents.
    progress : called with the stage and the share of it that is done.

    Raises
    ------
    TableError : a table is malformed or empty, or the runs have different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    depths = conform(depths, DEPTHS).sort_values(["run_id", "depth"], kind="stable").reset_index(drop=True)
    floor = noise_floor(selection.runs)
    progress("isoFLOP laws", 0.0)
    groups, skipped = fit_groups(selection.runs, floor, config)
    progress("depth curves", 0.0)
    depth = depth_study(selection.runs, depths, config)
    study = StudyFit(
        config=config,
        runs_digest=digest(runs),
        depths_digest=digest(depths),
        runs_used=len(selection.runs),
        noise=floor,
        groups=groups,
        depth=depth,
        run_laws=cross_run_laws(groups, depths, config, progress),
        task_laws=task_laws(selection.runs, config, [training_points(group, config) for group in groups]),
        envelopes=envelopes(selection.runs, groups, floor, config),
        checks=sanity_checks(selection.runs, floor),
        left_out=selection.left_out,
        skipped=skipped,
        runs=selection.runs,
        depths=depths,
    )
    if not config.validation:
        return study

    def refit(other: FitConfig, without: tuple[str, ...]) -> tuple[GroupFit, ...]:
        kept = selection.runs[~selection.runs["run_id"].isin(without)].reset_index(drop=True)
        return fit_groups(kept, floor, other)[0]

    progress("validation", 0.0)
    predictions = holdout(groups, config, study.depth, depths, study.run_laws)
    progress("sensitivity", 0.0)
    validated = replace(study, validation=predictions, sensitivity=sensitivity(groups, refit, config))
    progress("sensitivity", 1.0)
    return validated


def sanity_checks(runs: pd.DataFrame, floor: NoiseFloor) -> tuple[SanityCheck, ...]:
    """Check every run against the unigram entropy, and the largest budget against the smallest."""
    return (_below_unigram(runs), *_budgets_matter(runs, floor))


def _below_unigram(runs: pd.DataFrame) -> SanityCheck:
    known = runs[runs["val_unigram_nats"].notna()]
    name = "every run ends below the unigram entropy of the validation set"
    if known.empty:
        return SanityCheck(name=name, holds=None, numbers="the unigram entropy is not in the table")
    margin = (known["val_unigram_nats"] - known["val_loss_nats"]).astype(float)
    worst = known.iloc[int(margin.argmin())]
    numbers = (
        f"{int((margin > 0).sum())} of {len(known)} runs do; nearest or above: {worst['run_id']} with "
        f"{worst['val_loss_nats']:.4f} of {worst['val_unigram_nats']:.4f} nats"
    )
    return SanityCheck(name=name, holds=bool((margin > 0).all()), numbers=numbers)


def _budgets_matter(runs: pd.DataFrame, floor: NoiseFloor) -> tuple[SanityCheck, ...]:
    checks = []
    on_budgets = runs[runs["target_flops"].notna()]
    for (scale, accounting), frame in on_budgets.groupby(["scale", "accounting"], sort=True):
        gains = {}
        for (kind, depth), cells in frame.groupby(["kind", "mean_recurrence"], sort=True):
            means = cells.groupby("target_flops")["val_loss_nats"].mean()
            if len(means) > 1:
                label = f"µ = {depth:g}" if kind == "looped" else str(kind)
                gains[label] = float(means.iloc[0] - means.iloc[-1])
        if gains:
            checks.append(_gain_check(f"{scale}, {accounting} FLOPs", gains, floor))
    return tuple(checks)


def _gain_check(group: str, gains: dict[str, float], floor: NoiseFloor) -> SanityCheck:
    multiple = f"{FLOOR_MULTIPLE:g}x the noise floor"
    name = f"{group}: at each recurrence the largest budget beats the smallest by more than {multiple}"
    numbers = f"gains in nats: {', '.join(f'{gain:.3f} at {label}' for label, gain in gains.items())}"
    if floor.sd_nats is None:
        return SanityCheck(name=name, holds=None, numbers=f"{numbers}; training noise unknown")
    least = FLOOR_MULTIPLE * floor.sd_nats
    holds = all(gain > least for gain in gains.values())
    return SanityCheck(
        name=name, holds=holds, numbers=f"{numbers}; {FLOOR_MULTIPLE:g}x the floor is {least:.4f}"
    )
