"""Facts that every sound study shows, stated with their numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.stats.noise import NoiseFloor

FLOOR_MULTIPLE = 3.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One fact: what was asked, whether it holds (None: it cannot be told) and the numbers."""

    name: str
    holds: bool | None
    numbers: str


def checks(runs: pd.DataFrame, floor: NoiseFloor) -> tuple[Check, ...]:
    """Check every run against the unigram entropy, and the largest budget against the smallest."""
    return (_below_unigram(runs), *_budgets_matter(runs, floor))


def _below_unigram(runs: pd.DataFrame) -> Check:
    known = runs[runs["val_unigram_nats"].notna()]
    name = "every run ends below the unigram entropy of the validation set"
    if known.empty:
        return Check(name=name, holds=None, numbers="the unigram entropy is not in the table")
    margin = (known["val_unigram_nats"] - known["val_loss_nats"]).astype(float)
    worst = known.iloc[int(margin.argmin())]
    numbers = (
        f"{int((margin > 0).sum())} of {len(known)} runs do; nearest or above: {worst['run_id']} with "
        f"{worst['val_loss_nats']:.4f} of {worst['val_unigram_nats']:.4f} nats"
    )
    return Check(name=name, holds=bool((margin > 0).all()), numbers=numbers)


def _budgets_matter(runs: pd.DataFrame, floor: NoiseFloor) -> tuple[Check, ...]:
    found = []
    for (scale, accounting), frame in runs[runs["target_flops"].notna()].groupby(
        ["scale", "accounting"], sort=True
    ):
        gains = {}
        for (kind, depth), cells in frame.groupby(["kind", "mean_recurrence"], sort=True):
            means = cells.groupby("target_flops")["val_loss_nats"].mean()
            if len(means) > 1:
                label = f"µ = {depth:g}" if kind == "looped" else str(kind)
                gains[label] = float(means.iloc[0] - means.iloc[-1])
        if gains:
            found.append(_gain_check(f"{scale}, {accounting} FLOPs", gains, floor))
    return tuple(found)


def _gain_check(group: str, gains: dict[str, float], floor: NoiseFloor) -> Check:
    bar_text = f"{FLOOR_MULTIPLE:g}x the noise floor"
    name = f"{group}: at each recurrence the largest budget beats the smallest by more than {bar_text}"
    listed = ", ".join(f"{gain:.3f} at {label}" for label, gain in gains.items())
    if floor.sd_nats is None:
        return Check(name=name, holds=None, numbers=f"gains in nats: {listed}; training noise unknown")
    bar = FLOOR_MULTIPLE * floor.sd_nats
    holds = all(gain > bar for gain in gains.values())
    return Check(
        name=name, holds=holds, numbers=f"gains in nats: {listed}; {FLOOR_MULTIPLE:g}x the floor is {bar:.4f}"
    )
