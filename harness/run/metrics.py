"""The metrics of a run: JSON lines, flushed as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.storage.files import write_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file, without a last line cut off by a kill."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def last_metrics(path: Path) -> dict[str, Any]:
    """Return the last whole line of a metrics file, {} if there is none; reads only the file's end."""
    if not path.exists():
        return {}
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 4096))
        lines = handle.read().split(b"\n")
    whole = [line for line in lines[:-1] if line]
    return dict(json.loads(whole[-1])) if whole else {}


class MetricsLog:
    """Append the metrics of one run. On resume, lines past the checkpoint are removed first.

    Parameters
    ----------
    path : of metrics.jsonl.
    resume_step : the step of the checkpoint that the run continues from, 0 at its start.
    live : a wandb run that gets every line too (`harness.run.wandb.live_run`).
    """

    def __init__(self, path: Path, *, resume_step: int, live: Any | None = None) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._live = live

    def write(self, metrics: Mapping[str, float | None]) -> None:
        """Append one line. `metrics` must have a `step`."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._live is not None:
            self._live.log(metrics, step=int(metrics["step"] or 0))

    def sync(self) -> None:
        """Return once the lines written so far are on the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._live is not None:
            self._live.finish(exit_code=int(kind is not None))
