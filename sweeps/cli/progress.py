"""Progress bars with an ETA, and the live table of a sweep; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sweeps.cli.tables import clock
from sweeps.state.eta import LOST, flops_left, flops_own, has_ended, with_trunks
from sweeps.state.ledger import is_worked_on
from sweeps.state.status import status

if TYPE_CHECKING:
    import pandas as pd

REFRESH_S = 1.0
STARTING_S = 15.0  # a new worker imports torch before it takes its slot
BUSY_ROWS, FAILED_ROWS = 40, 10  # in the live view
PLAIN_EVERY_S = 15.0  # between lines where stderr is no terminal


def _console() -> Console:
    # Progress goes to stderr: stdout is for results.
    return Console(file=sys.stderr)


def _bar(console: Console, field: str = "") -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")]
    extra = [TextColumn(field)] if field else []
    return Progress(
        *columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), *extra, console=console
    )


@contextmanager
def stage_progress() -> Iterator[Callable[[str, float], None]]:
    """Show the stages of a long command; yields the callback (stage, fraction done)."""
    bar = _bar(_console())
    tasks: dict[str, Any] = {}

    def update(stage: str, fraction: float) -> None:
        bar.start()  # only now is there something to show
        if stage not in tasks:
            for earlier in tasks.values():
                bar.update(earlier, completed=1.0)
            tasks[stage] = bar.add_task(stage, total=1.0)
        bar.update(tasks[stage], completed=fraction)

    try:
        yield update
    finally:
        if tasks:
            bar.stop()


@contextmanager
def step_progress(title: str, steps: int) -> Iterator[Callable[[dict[str, float | None]], None]]:
    """Show the steps of one run; yields the callback that takes each line of its metrics."""
    with _bar(_console(), "{task.fields[loss]}") as bar:
        task = bar.add_task(title, total=steps, loss="")

        def update(line: dict[str, float | None]) -> None:
            loss = line["train_loss_nats"]
            bar.update(task, completed=line["step"], loss="loss -" if loss is None else f"loss {loss:.4f}")

        yield update


def watch(folder: Path, alive: Callable[[pd.DataFrame], bool] = lambda frame: True) -> None:
    """Show the sweep in `folder` until all runs have ended or `alive` returns False."""
    console = _console()
    meter = _Meter()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown_at = 0.0
        while True:
            frame = status(folder)
            ended = frame["status"].map(has_ended).all() or not alive(frame)
            if console.is_terminal:
                live.update(_live_view(frame, meter), refresh=True)
            elif ended or time.monotonic() - shown_at > PLAIN_EVERY_S:
                print(meter.line(frame), file=sys.stderr, flush=True)
                shown_at = time.monotonic()
            if ended:
                return
            time.sleep(REFRESH_S)


def watch_until_idle(folder: Path) -> None:
    """Show the sweep in `folder` until it has ended or nothing works on it any more."""
    began = time.monotonic()

    def alive(frame: pd.DataFrame) -> bool:
        queued = bool(frame["status"].isin(["submitted", "running"]).any() and (frame["job"] != "").any())
        return queued or time.monotonic() - began < STARTING_S or is_worked_on(folder)

    watch(folder, alive)


class _Meter:
    """Estimates the remaining time from the FLOPs done since the first call."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def line(self, frame: pd.DataFrame) -> str:
        everything = with_trunks(frame)
        rows = everything[["status", "step", "first_step", "steps", "nominal_flops"]].to_dict("records")
        total, now = sum(map(flops_own, rows)), time.monotonic()
        done = total - sum(map(flops_left, rows))
        self._first = self._first or (now, done)
        began, before = self._first
        eta = "--"
        if done > before:
            eta = clock((total - done) * (now - began) / (done - before))
        finished = int((frame["status"] == "done").sum())
        running = everything[everything["status"] == "running"]
        losses = ", ".join(f"{loss:.3f}" for loss in running["train_loss_nats"].dropna())
        text = f"{finished}/{len(frame)} runs done, {100 * done / total:.0f} % of the FLOPs, ETA {eta}"
        return f"{text}, training losses now: {losses}" if losses else text


def _live_view(frame: pd.DataFrame, meter: _Meter) -> Group:
    lines = [Text(meter.line(frame), style="bold")]
    everything = with_trunks(frame)
    busy = everything[everything["status"].isin(["running", LOST])]
    for row in busy.head(BUSY_ROWS).to_dict("records"):
        loss = f"loss {row['train_loss_nats']:.3f}" if row["train_loss_nats"] else ""
        share = row["step"] / row["steps"]
        lines.append(Text(f"  {row['run_id']:<44} {'#' * round(30 * share):<30} {share:4.0%} {loss}"))
    if len(busy) > BUSY_ROWS:
        lines.append(Text(f"  and {len(busy) - BUSY_ROWS} more"))
    failed = everything[everything["status"].str.startswith("failed")]
    for row in failed.head(FAILED_ROWS).to_dict("records"):
        lines.append(Text(f"  {row['run_id']:<44} {row['status']}: {row['message']}", style="red"))
    return Group(*lines)
