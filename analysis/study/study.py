"""`fit`: from the two tables of a study to its laws, with intervals and refusals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis import serialize
from analysis.config import FitConfig, Progress
from analysis.isoflop.estimator import DEFAULT_ESTIMATOR
from analysis.isoflop.group import GroupFit, Values, fit_groups
from analysis.serialize import HIDDEN
from analysis.stats.noise import NoiseFloor, noise_floor
from analysis.study import words
from analysis.study.cross_run_laws import RunLaw, run_laws
from analysis.study.depth import DepthStudy, depth_study
from analysis.study.holdout import Validation, validate
from analysis.study.sanity_checks import Check, checks
from analysis.study.sensitivity import Variant, sensitivity
from analysis.tables.schema import DEPTHS, conform
from analysis.tables.selection import LeftOut, digest, select

RESULT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class StudyFit:
    """All laws of a study, what was refused and why, and where the numbers come from."""

    version: int = RESULT_VERSION
    config: FitConfig
    runs_digest: str
    depths_digest: str
    runs_used: int
    noise: NoiseFloor
    groups: tuple[GroupFit, ...]
    depth: DepthStudy
    run_laws: tuple[RunLaw, ...]  # the iso-depth law and the unified law
    validation: Validation | None = None  # None: not asked for
    sensitivity: tuple[Variant, ...] | None = None
    checks: tuple[Check, ...]
    left_out: tuple[LeftOut, ...]
    skipped: tuple[str, ...]  # groups without an isoFLOP curve, and why
    runs: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)
    depths: pd.DataFrame = field(repr=False, compare=False, metadata=HIDDEN)

    def summary(self) -> str:
        """Return the whole result as plain text."""
        return words.summary(self)

    def headlines(self) -> list[str]:
        """Return the laws, or the refusals with their reasons, in at most three lines."""
        return words.headlines(self)

    def predict(self, flops: Values, estimator: str = DEFAULT_ESTIMATOR) -> pd.DataFrame:
        """Return optimal recurrence and tokens at budgets of `flops` and L* there, per group.

        A group whose estimator has no power law is left out (see `GroupFit.predict`). Raises ValueError, with
        the first refusal, where none has one.
        """
        found, refused = [], []
        for group in self.groups:
            try:
                rows = group.predict(flops, estimator)
            except ValueError as error:
                refused.append(f"{group.label}: {error}")
                continue
            rows.insert(0, "group", group.label)
            found.append(rows)
        if not found:
            raise ValueError((refused or ["no group of runs lies on isoFLOP curves"])[0])
        return pd.concat(found, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dict(serialize.to_jsonable(self))

    def to_json(self) -> str:
        """Return the result as JSON text, the same bytes for the same tables and seed."""
        return serialize.to_json(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the isoFLOP curves of the first group on a matplotlib axis and return it."""
        from analysis.figures.all import plot_isoflop

        return plot_isoflop(self.groups[0], "mean_recurrence", ax)


def fit(
    runs: pd.DataFrame,
    depths: pd.DataFrame,
    config: FitConfig | None = None,
    progress: Progress = lambda stage, done: None,
) -> StudyFit:
    """Fit every law of a study from its runs and depth tables.

    With `config.validation` the result also says how the laws predict what they did not see, and how the
    exponents move with other choices. `progress` is told the stage and the share of it that is done. Raises
    TableError for tables that are malformed, empty, or hold runs of different data.
    """
    config = config or FitConfig()
    selection = select(runs, config.max_epochs)
    depths = conform(depths, DEPTHS).sort_values(["run_id", "depth"], kind="stable").reset_index(drop=True)
    floor = noise_floor(selection.runs)
    progress("isoFLOP laws", 0.0)
    fitted, skipped = fit_groups(selection.runs, floor, config)
    progress("depth curves", 0.0)
    depth = depth_study(selection.runs, depths, config)
    study = StudyFit(
        config=config,
        runs_digest=digest(runs),
        depths_digest=digest(depths),
        runs_used=len(selection.runs),
        noise=floor,
        groups=fitted,
        depth=depth,
        run_laws=run_laws(fitted, depths, config, progress),
        checks=checks(selection.runs, floor),
        left_out=selection.left_out,
        skipped=skipped,
        runs=selection.runs,
        depths=depths,
    )
    if not config.validation:
        return study

    def again(other: FitConfig, without: tuple[str, ...]) -> tuple[GroupFit, ...]:
        kept = selection.runs[~selection.runs["run_id"].isin(without)].reset_index(drop=True)
        return fit_groups(kept, floor, other)[0]

    progress("validation", 0.0)
    validation = validate(fitted, config, study.depth, depths, study.run_laws)
    progress("sensitivity", 0.0)
    checked = replace(study, validation=validation, sensitivity=sensitivity(fitted, again, config))
    progress("sensitivity", 1.0)
    return checked
