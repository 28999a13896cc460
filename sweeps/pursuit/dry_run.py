"""`pursue dry_run=true`: whole pursuits simulated under a law, before anything is paid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.config import FitConfig, Progress
from analysis.design import simulate
from analysis.design.ground_truth import GroundTruth, fitted
from analysis.design.simulate import Grid
from analysis.format import number, percent
from analysis.pursuit.policy import Policy
from analysis.pursuit.simulate import SimulatedPursuit, simulate_pursuit
from analysis.tables.schema import TableError
from model.config_validation import ConfigError
from sweeps.config.study import StudyConfig
from sweeps.planning.design import assumed_laws, assumed_noise
from sweeps.planning.new_sweep import closest_reference, looped_model
from sweeps.pursuit.offer import offer

PURSUITS = 6


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Simulated pursuits under one law."""

    policy: Policy
    law: str
    seed_nats: float
    pursuits: tuple[SimulatedPursuit, ...]

    def summary(self) -> str:
        """Return the first pursuit's rounds, and what all spend and end with."""
        spent = np.array([one.spent_flops for one in self.pursuits])
        answered = np.mean([one.rounds[-1].answered for one in self.pursuits])
        most = self.policy.allowance_flops
        rounds = [len(one.rounds) - 1 for one in self.pursuits]
        lines = [
            f"{len(self.pursuits)} simulated pursuits under {self.law}, noise {self.seed_nats:g} nats, "
            f"allowance {number(most)} FLOPs, wanted width {self.policy.target_width:g}",
            f"  {percent(float(answered))} end with it; they spend {number(float(np.median(spent)))} FLOPs "
            f"({np.median(spent) / most:.0%} of the allowance, {spent.min() / most:.0%} to "
            f"{spent.max() / most:.0%}) in {min(rounds)} to {max(rounds)} rounds",
            f"  {self._widths()}",
            "  one of them, round by round:",
        ]
        before = 0.0
        for place, decision in enumerate(self.pursuits[0].rounds, start=1):
            before += decision.flops
            share = f"{number(before)} FLOPs with it" if decision.cells else f"end; {number(before)} FLOPs"
            lines.append(f"    {place}: {decision.reason}; {share}")
        return "\n".join(lines)

    def _widths(self) -> str:
        answers = [one.rounds[-1].answer for one in self.pursuits]
        widths = [one.width for one in answers if one is not None and one.width is not None]
        if not widths:
            return "no pursuit ends with an interval"
        span = f"{min(widths):.3g} to {max(widths):.3g}"
        text = f"interval at the end: median width {np.median(widths):.3g}, {span}"
        if len(widths) < len(answers):
            text += f"; {len(answers) - len(widths)} of {len(answers)} end without one"
        return text


def dry_run(study: StudyConfig, progress: Progress = lambda stage, done: None) -> tuple[DryRun, ...]:
    """Return simulated pursuits under each law of `assume.law`; writes nothing.

    Without `assume.law` it is that of the shipped sweep of the scale.
    """
    policy, runs = offer(study)
    noise = assumed_noise(study, runs)
    results = []
    for law in _laws(study, simulate.grid(runs, FitConfig().parameter_count)):
        pursuits = []
        for k in range(PURSUITS):
            progress(f"pursuits under {law.name}", k / PURSUITS)
            pursuits.append(simulate_pursuit(policy, runs, law, noise, study.assume.seed + k))
        progress(f"pursuits under {law.name}", 1.0)
        results.append(
            DryRun(policy=policy, law=law.name, seed_nats=noise.seed_nats, pursuits=tuple(pursuits))
        )
    return tuple(results)


def _laws(study: StudyConfig, grid: Grid) -> list[GroundTruth]:
    (scale,) = study.runs
    reference = closest_reference(scale, looped_model(scale))
    if study.assume.law is None and reference.scale == scale and reference.study is not None:
        return [fitted(reference.study / "laws.json", grid.runs, FitConfig().parameter_count)]
    try:
        return assumed_laws(study, grid)
    except TableError as error:
        raise ConfigError(f"dry_run=true simulates under a law: {error}") from None
