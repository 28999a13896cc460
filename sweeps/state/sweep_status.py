"""The status of a sweep as a result: rows, forecast, and the next command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.format import plural
from sweeps.config.next_command import command_line, next_command
from sweeps.state.eta import UNDER_WAY, Forecast, counts, has_ended
from sweeps.state.ledger import UNREADABLE

if TYPE_CHECKING:
    import pandas as pd


DAMAGED = f"failed:{UNREADABLE}"


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """How a sweep stands.

    Attributes
    ----------
    rows : one per run, by column: run_id, trunk_id, scale, kind, mean_recurrence, target_flops,
        nominal_flops, seed, `axes`, tokens, status, attempts, first_step (where it takes over from a trunk),
        step, steps, train_loss_nats, val_loss_nats, tokens_per_s, eta_s, job, node, message. A run that is
        marked running while no process holds it and no job is at it has the status `lost`; one whose job is
        suspended `suspended`; one that has measured nothing for long `stalled`.
    trunks : a row like these for each segment of a trunk; `unneeded` is one from which nothing unfinished has
        yet to start.
    axes : the settings in which the runs differ: learning rates, injection, data and others.
    notes : why the scheduler could not be asked.
    worked_on : whether worker processes are at the sweep, also where they are only starting.
    launched : the overrides of the sweep's last launch.
    """

    sweep: str
    rows: list[dict[str, Any]]
    trunks: list[dict[str, Any]]
    axes: list[str]
    notes: list[str]
    forecast: Forecast
    worked_on: bool = False
    launched: list[str] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows of the runs as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def frame_with_trunks(self) -> pd.DataFrame:
        """The rows of the runs, then those of the segments, as a table."""
        import pandas as pd

        return (
            pd.concat([self.frame, pd.DataFrame(self.trunks)], ignore_index=True)
            if self.trunks
            else self.frame
        )

    def summary(self, at: Sequence[str], *, notes: Sequence[str] = ()) -> str:
        """Return the counts, what is left, the trunks, all remarks and the next command.

        `at` holds the overrides that name the sweep: sweep=..., and root=... unless it is the default.
        """
        statuses = [row["status"] for row in self.rows]
        text = ", ".join(f"{count} {name}" for name, count in counts(statuses).items())
        everything = [*self.rows, *self.trunks]
        if self.worked_on and not any(row["status"] in (*UNDER_WAY, "done") for row in everything):
            text += "; workers are starting and will take them up"
        lines = [f"{plural(len(statuses), 'run')}: {text}"]
        if self.forecast.remaining_flops:
            lines.append(_remaining(self.forecast))
        if self.trunks:
            lines.append(self._trunks_in_words(at))
        return "\n".join([*lines, *notes, *self.notes, self.next_command(at)])

    def next_command(self, at: Sequence[str]) -> str:
        """Return the line that names the next command."""
        statuses = [row["status"] for row in self.rows]
        if all(status == "done" for status in statuses):
            return next_command("collect", at)
        retried = any(
            map(has_ended, {*statuses} - {"done", DAMAGED})
        )  # a remark says what helps a damaged one
        if retried and all(map(has_ended, statuses)):
            return next_command("retry", at, "failed=true")
        if self.worked_on or set(UNDER_WAY) & set(statuses):
            return next_command("status", at, "watch=true")
        root = [text for text in at if text.startswith("root=")]
        launched = [text for text in self.launched if not text.startswith("root=")]
        return next_command("launch", [*(launched or at), *root])

    def _trunks_in_words(self, at: Sequence[str]) -> str:
        shown = counts(row["status"] for row in self.trunks)
        states = ", ".join(f"{count} {name}" for name, count in shown.items())
        failed = [row["run_id"] for row in self.trunks if row["status"].startswith("failed")]
        text = f"{plural(len(self.trunks), 'trunk segment')}: {states}"
        if failed:
            text += f"; what starts from {', '.join(failed[:3])} is held back"
            text += f": {command_line('retry', at, 'failed=true')}"
        return text


def _remaining(left: Forecast) -> str:
    hours = left.remaining_run_hours
    cost = f", {hours:.3g} run-hours at the measured speed" if hours is not None else ""
    end = ""
    if left.ends_in_s is not None:
        clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left.ends_in_s))
        end = f"; expected end {clock} with {left.running} side by side"
    return f"remaining {left.remaining_flops:.3g} nominal FLOPs{cost}{end}"
