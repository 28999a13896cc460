"""Progress bars with an ETA, and the live table of a sweep; on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from analysis.format import plural
from sweeps.cli import live_page
from sweeps.cli.tables import clock
from sweeps.state.eta import LOST, STALLED, SUSPENDED, UNDER_WAY, flops_left, flops_own, has_ended
from sweeps.state.status import status
from sweeps.state.sweep_status import SweepStatus

REFRESH_S = 1.0
BUSY_ROWS, FAILED_ROWS = 40, 10  # in the live view
PLAIN_EVERY_S = 15.0  # between lines where stderr is no terminal


def _console() -> Console:
    # Progress goes to stderr: stdout is for results.
    return Console(file=sys.stderr, markup=False, emoji=False)


def _bar(console: Console, field: str = "") -> Progress:
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    ]
    extra = [TextColumn(field, markup=False)] if field else []
    return Progress(
        *columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), *extra, console=console
    )


@contextmanager
def stage_progress() -> Iterator[Callable[[str, float], None]]:
    """Show the stages of a long command; yields the callback (stage, fraction done).

    Where stderr is no terminal, a stage is a line at its beginning and another every 15 s.
    """
    console = _console()
    if not (console.is_terminal or console.is_jupyter):
        yield _PlainStages()
        return
    bar = _bar(console)
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


class _PlainStages:
    """Prints the stages of a long command as lines."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._shown_at = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        began = self._began.get(stage)
        if began is None:
            self._began[stage] = now
            print(f"{stage} ...", file=sys.stderr, flush=True)
        elif now - self._shown_at > PLAIN_EVERY_S:
            eta = clock((now - began) * (1 - fraction) / fraction) if fraction else "--"
            print(f"{stage}: {100 * fraction:.0f} %, ETA {eta}", file=sys.stderr, flush=True)
        else:
            return
        self._shown_at = now


@contextmanager
def step_progress(title: str, steps: int) -> Iterator[Callable[[dict[str, float | None]], None]]:
    """Show the steps and the evaluation of one run; yields the callback for the lines of its metrics."""
    with _bar(_console(), "{task.fields[loss]}") as bar:
        print(title, file=sys.stderr)
        task = bar.add_task("training", total=steps, loss="")
        evaluation: TaskID | None = None

        def update(line: dict[str, float | None]) -> None:
            nonlocal evaluation
            if "evaluated" in line:
                if evaluation is None:
                    evaluation = bar.add_task("evaluating", total=1.0, loss="")
                bar.update(evaluation, completed=line["evaluated"])
                return
            loss = line["train_loss_nats"]
            bar.update(task, completed=line["step"], loss="loss -" if loss is None else f"loss {loss:.4f}")

        yield update


def watch(
    folder: Path, alive: Callable[[SweepStatus], bool] = lambda state: True, page: Path | None = None
) -> None:
    """Show the sweep in `folder` until all runs have ended or `alive` returns False; rewrite its `page`."""
    console = _console()
    meter = _Meter()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown_at = written_at = -PLAIN_EVERY_S
        while True:
            state = status(folder)
            ended = all(has_ended(row["status"]) for row in state.rows) or not alive(state)
            if page is not None and (ended or time.monotonic() - written_at > live_page.REFRESH_S):
                live_page.write_live_page(state, folder, page, live=not ended)
                written_at = time.monotonic()
            if console.is_terminal:
                live.update(_live_view(state, meter), refresh=True)
            elif ended or time.monotonic() - shown_at > PLAIN_EVERY_S:
                print(meter.line(state), file=sys.stderr, flush=True)
                shown_at = time.monotonic()
            if ended:
                return
            time.sleep(REFRESH_S)


def watch_until_idle(folder: Path, page: Path | None = None) -> None:
    """Show the sweep in `folder`, and on its `page`, until it has ended or nothing works on it any more."""

    def alive(state: SweepStatus) -> bool:
        active = any(row["status"] in UNDER_WAY for row in state.rows)
        return state.worked_on or (active and any(row["job"] for row in state.rows))

    watch(folder, alive, page)


class _Meter:
    """Estimates the remaining time from the FLOPs done since the first call."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def line(self, state: SweepStatus) -> str:
        rows = [*state.rows, *state.trunks]
        total, now = sum(map(flops_own, rows)), time.monotonic()
        done = total - sum(map(flops_left, rows))
        self._first = self._first or (now, done)
        began, before = self._first
        eta = "--"
        if done > before:
            eta = clock((total - done) * (now - began) / (done - before))
        finished = sum(row["status"] == "done" for row in state.rows)
        losses = ", ".join(_loss(row) for row in rows if row["status"] == "running" and _loss(row))
        text = (
            f"{finished}/{len(state.rows)} runs done{_in_training(state)}, "
            f"{100 * done / total:.0f} % of the FLOPs, ETA {eta}"
        )
        return f"{text}, training losses now: {losses}" if losses else text


def _in_training(state: SweepStatus) -> str:
    """Return how many runs and trunk segments train now, in words, empty if none does."""
    running = {
        name: sum(row["status"] == "running" for row in rows)
        for name, rows in (("run", state.rows), ("trunk segment", state.trunks))
    }
    words = [plural(count, name) for name, count in running.items() if count]
    return f", {' and '.join(words)} in training" if words else ""


def _loss(row: dict[str, Any]) -> str:
    """Return the newest training loss of a run as text, empty before it has one."""
    loss = row["train_loss_nats"]
    return "" if loss is None or math.isnan(loss) else f"{loss:.3f}"


def _live_view(state: SweepStatus, meter: _Meter) -> Group:
    lines = [Text(meter.line(state), style="bold")]
    rows = [*state.rows, *state.trunks]
    busy = [row for row in rows if row["status"] in ("running", SUSPENDED, STALLED, LOST)]
    for row in busy[:BUSY_ROWS]:
        loss = f"loss {_loss(row)}" if _loss(row) else ""
        share = row["step"] / row["steps"]
        lines.append(Text(f"  {row['run_id']:<44} {'#' * round(30 * share):<30} {share:4.0%} {loss}"))
    if len(busy) > BUSY_ROWS:
        lines.append(Text(f"  and {len(busy) - BUSY_ROWS} more"))
    failed = [row for row in rows if row["status"].startswith("failed")]
    for row in failed[:FAILED_ROWS]:
        lines.append(Text(f"  {row['run_id']:<44} {row['status']}: {row['message']}", style="red"))
    return Group(*lines)
