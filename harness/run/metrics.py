"""The run's metrics: JSON lines flushed as they come, and live to wandb for those who ask."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.run.config import LoggerConfig
from harness.run.wandb_start import start_wandb
from harness.storage.files import write_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def last_metrics(path: Path) -> dict[str, Any]:
    """Return the last whole line of a metrics file without reading all of it, {} where there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 4096))
        lines = handle.read().split(b"\n")
    whole = [line for line in lines[:-1] if line]
    return dict(json.loads(whole[-1])) if whole else {}


class MetricsLog:
    """Append metrics of one run; on resume, what lies past the checkpoint is cut off first."""

    def __init__(
        self, path: Path, *, resume_step: int, logger: LoggerConfig, run_id: str, sweep: str
    ) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step]
        online = logger.name == "wandb" and logger.mode == "online"
        self._wandb = None
        if online:
            self._wandb = start_wandb(
                logger, mode="online", resume="allow", folder=path.parent, run_id=run_id, sweep=sweep
            )
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: Mapping[str, float | None]) -> None:
        """Append one line; `step` must be among the metrics."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(metrics, step=int(metrics["step"] or 0))

    def sync(self) -> None:
        """Wait until the lines written so far are on the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))
