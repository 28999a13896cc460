"""Device-seconds of a run as a function of its tokens and its recurrence, from the recorded seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.config import Array
from analysis.format import number, percent, plural
from analysis.tables.schema import TableError


@dataclass(frozen=True, kw_only=True)
class RunSeconds:
    """Device-seconds of a run: overhead + tokens (fixed + per_loop µ), fitted by relative least squares."""

    overhead_s: float
    fixed_s_per_token: float
    per_loop_s_per_token: float
    scatter: float  # relative standard deviation of the runs about it
    runs: int
    device: str

    def per_token(self, mean_recurrence: Array | float) -> Array:
        """Return device-seconds per token."""
        return self.fixed_s_per_token + self.per_loop_s_per_token * np.asarray(mean_recurrence, float)

    def summary(self) -> str:
        """Return the function with its scatter."""
        return (
            f"{number(self.overhead_s)} s + tokens x ({number(1e6 * self.fixed_s_per_token)} + "
            f"{number(1e6 * self.per_loop_s_per_token)} µ) µs on {self.device}, "
            f"from {plural(self.runs, 'run')} that scatter by {percent(self.scatter, 1)} about it"
        )


def timed_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return run_id, mean_recurrence, tokens and device-seconds of the looped and fixed runs.

    The tokens are those that a run trained itself: steps taken over from a trunk cost it nothing.

    Raises
    ------
    TableError : seconds are missing, or were measured on several kinds of device or kernels.
    """
    used = runs[runs["kind"].isin(["looped", "fixed"])]
    seconds = used["device_s"].astype(float)
    seconds = seconds.where(seconds.notna(), used["wall_s"].astype(float) * used["devices"].astype(float))
    missing = ~(np.isfinite(seconds) & (seconds > 0))
    if missing.any():
        first = used["run_id"][missing].iloc[0]
        raise TableError(
            f"the seconds of {int(missing.sum())} of {len(used)} runs are missing ({first} is the first)"
        )
    kinds = sorted(set(_devices(used)))
    if len(kinds) > 1:
        listed = ", ".join(kinds)
        raise TableError(
            f"seconds were measured on {len(kinds)} kinds of device: {listed}; keep one with where="
        )
    taken_over = (used["trunk_steps"] / used["steps"]).fillna(0).to_numpy(float)
    own = used["tokens"].to_numpy(float) * (1 - taken_over)
    columns = {"run_id": used["run_id"], "mean_recurrence": used["mean_recurrence"].astype(float)}
    return pd.DataFrame({**columns, "tokens": own, "seconds": seconds, "device": kinds[0]})


def _devices(runs: pd.DataFrame) -> list[str]:
    named = zip(runs["device"].astype(str), runs["kernels"].astype(str), strict=True)
    return [f"{device} ({kernels or 'kernels unknown'})" for device, kernels in named]


def run_seconds(timed: pd.DataFrame) -> RunSeconds:
    """Return device-seconds as a function of tokens and recurrence.

    Parameters
    ----------
    timed : of `timed_runs`.

    Raises
    ------
    TableError : the runs do not determine it.
    """
    from scipy.optimize import nnls

    depth, own = timed["mean_recurrence"].to_numpy(float), timed["tokens"].to_numpy(float)
    recurrences = len(np.unique(depth))
    if len(timed) < 4 or recurrences < 2:
        noun = "recurrence" if recurrences == 1 else "recurrences"
        raise TableError(f"{len(timed)} runs at {recurrences} {noun} do not give seconds per loop")
    design = np.stack([np.ones_like(own), own, own * depth], 1) / timed["seconds"].to_numpy(float)[:, None]
    scale = design.mean(0)
    best = nnls(design / scale, np.ones(len(own)))[0] / scale
    if best[2] <= 0:
        raise TableError("the seconds do not grow with the recurrence")
    residual = 1 - design @ best
    return RunSeconds(
        overhead_s=float(best[0]),
        fixed_s_per_token=float(best[1]),
        per_loop_s_per_token=float(best[2]),
        scatter=float(np.sqrt(residual @ residual / (len(own) - 3))),
        runs=len(timed),
        device=str(timed["device"].iloc[0]),
    )
