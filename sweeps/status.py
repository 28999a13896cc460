"""How a sweep stands, read from its run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.metrics import last_metrics
from harness.runfolder import RunFolder
from sweeps.ledger import read_ledger

if TYPE_CHECKING:
    import pandas as pd

LOST = "lost"  # its process is gone; the next launch resumes it


def status(folder: Path) -> pd.DataFrame:
    """Return one row per run of the sweep in `folder`.

    Columns: run_id, scale, kind, mean_recurrence, target_flops, nominal_flops, seed, status, attempts, step,
    steps, train_loss_nats, val_loss_nats, tokens_per_s, message. A run that is marked running while no
    process holds it is shown as `lost`. Raises ConfigError where nothing was launched.
    """
    import pandas as pd

    return pd.DataFrame([_row(run) for run in read_ledger(folder).runs(folder)])


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """Return how many runs have each status, done first."""
    return {str(name): int(count) for name, count in frame["status"].value_counts().items()}


def has_ended(shown: str) -> bool:
    """Say whether a run shown like this needs nothing more: done, or failed for good."""
    return shown == "done" or shown.startswith("failed")


def summary(frame: pd.DataFrame, sweep: str, *, worked_on: bool) -> str:
    """Return one line of counts and what to do next."""
    text = ", ".join(f"{count} {name}" for name, count in counts(frame).items())
    advice = ""
    if worked_on:
        advice = f"; loopscale status sweep={sweep} watch=true follows them"
    elif frame["status"].isin(["planned", "submitted", LOST]).any():
        advice = f"; loopscale launch sweep={sweep} continues what is missing"
    return f"{len(frame)} runs: {text}{advice}"


def gaps(frame: pd.DataFrame) -> str:
    """Name the runs that are not done, at most five of them."""
    missing = frame.loc[frame["status"] != "done", ["run_id", "status"]]
    if missing.empty:
        return "all runs done"
    named = ", ".join(f"{row.run_id} ({row.status})" for row in missing.head(5).itertuples())
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"{len(missing)} of {len(frame)} runs are not done: {named}{more}"


def _row(run: RunFolder) -> dict[str, Any]:
    record, state, newest = run.record(), run.status(), last_metrics(run.metrics)
    shown = str(state)
    if state.state == "running" and not run.is_held():
        shown = LOST
    columns = ("run_id", "scale", "kind", "mean_recurrence", "target_flops", "nominal_flops", "seed")
    return {name: record[name] for name in columns} | {
        "status": shown,
        "attempts": state.attempts,
        "step": state.steps if state.state == "done" else newest.get("step", 0),
        "steps": record["steps"],
        "train_loss_nats": newest.get("train_loss_nats"),
        "val_loss_nats": record["val_loss_nats"],
        "tokens_per_s": record["tokens_per_s"] or newest.get("tokens_per_s"),
        "message": state.message,
    }
