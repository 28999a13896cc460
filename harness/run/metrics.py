"""The metrics of a run: JSON lines, flushed as they come, and their history in wandb.

The history is live or made from metrics.jsonl, under the run's id. wandb cannot resume an offline run (each
start begins another one at step 0), and a killed process loses its last seconds. An offline history is
therefore not written while training but made anew from metrics.jsonl.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from harness.run.config import LoggerConfig
from harness.run.folder import RunFolder
from harness.storage.files import read_json, write_json
from model.config_validation import ConfigError

Mode = Literal["offline", "online"]
STAMP = "synced.json"  # what the history was made from


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


def cut_after(path: Path, step: int) -> int:
    """Remove the lines after `step` and return the last one's step, 0 without any.

    What is no line of metrics at the file's end is removed too; no more than that end is read.
    """
    if not path.exists() or not path.stat().st_size:
        return 0
    last = 0
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            end = text.rfind(b"\n") + 1
            while end:
                start = text.rfind(b"\n", 0, end - 1) + 1
                last = _step_of(text[start:end])
                if 0 < last <= step:
                    break
                end = start
        file.truncate(end)
    return last if end else 0


def _step_of(line: bytes) -> int:
    """Return the step of a line of metrics, 0 if it is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return 0


class MetricsLog:
    """Append the metrics of one run. On resume, lines past the checkpoint are removed first.

    Parameters
    ----------
    path : of metrics.jsonl.
    resume_step : the step of the checkpoint that the run continues from, 0 at its start.
    every : steps from one line to the next; a warning says which lines before the checkpoint are missing.
    live : a wandb run that gets every line too (`live_run`).
    """

    def __init__(self, path: Path, *, resume_step: int, every: int = 0, live: Any | None = None) -> None:
        last = cut_after(path, resume_step)
        if every and last < (due := resume_step - resume_step % every):
            warnings.warn(
                f"{path}: the lines of steps {last + 1} to {due} are missing, but the run goes on unchanged",
                stacklevel=2,
            )
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


def live_run(folder: RunFolder, logger: LoggerConfig) -> Any | None:
    """Return the wandb run to log to while training, or None if `logger` asks for none.

    It continues the history on the server. An offline one is made by `write_offline_history` afterwards.
    """
    if logger.name != "wandb" or logger.mode != "online":
        return None
    return _start(folder, logger, "online", folder.path, resume="allow")


def write_offline_history(folder: RunFolder) -> None:
    """Make the offline history of an attempt that has ended, where the run's logger asks for it.

    An error of wandb becomes a warning, because metrics.jsonl has everything.
    """
    logger = folder.config().logger
    if logger.name != "wandb" or logger.mode != "offline":
        return
    try:
        rebuild_history(folder, logger, "offline")
    except Exception as error:
        warnings.warn(
            f"no wandb history of {folder.run_id} ({error}): make it with loopscale sync", stacklevel=2
        )


def rebuild_history(folder: RunFolder, logger: LoggerConfig, mode: Mode) -> bool:
    """Make the run's wandb history from metrics.jsonl, its configuration and its record.

    Offline, `<run>/wandb/offline-run-*` is replaced; online, the history on the server.

    Returns
    -------
    False if nothing has changed since the last time or nothing is measured yet.

    Raises
    ------
    ConfigError : wandb or its server refuses the metrics.
    """
    stamp = {"source": _digest(folder), "mode": mode, "project": logger.project, "entity": logger.entity}
    target = folder.path / "wandb"
    exists = mode == "online" or any(target.glob(f"offline-run-*-{folder.run_id}"))
    if exists and (target / STAMP).exists() and read_json(target / STAMP) == stamp:
        return False
    if not (lines := read_metrics(folder.metrics)):
        return False
    with tempfile.TemporaryDirectory(prefix=".wandb-", dir=folder.path) as scratch:
        _write(folder, logger, mode, Path(scratch), lines)
        if mode == "offline":
            target.mkdir(exist_ok=True)
            for old in target.glob(f"offline-run-*-{folder.run_id}"):
                shutil.rmtree(old)
            (made,) = (Path(scratch) / "wandb").glob(f"offline-run-*-{folder.run_id}")
            made.rename(target / made.name)
    target.mkdir(exist_ok=True)
    write_json(target / STAMP, stamp)
    return True


def _library(mode: Mode) -> Any:
    if mode == "offline":
        # wandb reports its own errors to a host that it looks up even offline. It decides so when imported.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    return wandb


def _start(
    folder: RunFolder, logger: LoggerConfig, mode: Mode, directory: Path, *, resume: Literal["allow"] | None
) -> Any:
    """Start a wandb run in `directory`, grouped by sweep; resume=None begins its history anew."""
    return _library(mode).init(
        project=logger.project,
        entity=logger.entity,
        id=folder.run_id,
        name=folder.run_id,
        group=folder.sweep,
        dir=directory,
        mode=mode,
        resume=resume,
        settings=_library(mode).Settings(
            silent=True, disable_git=True, console="off", x_disable_stats=True, x_save_requirements=False
        ),
    )


def _write(
    folder: RunFolder, logger: LoggerConfig, mode: Mode, scratch: Path, lines: list[dict[str, Any]]
) -> None:
    wandb = _library(mode)
    try:
        run = _start(folder, logger, mode, scratch, resume=None)
        run.config.update(dataclasses.asdict(folder.config()))
        for line in lines:
            run.log(line, step=int(line["step"]))
        status = folder.status()
        run.summary.update({**_results(folder), "status": str(status), "attempts": status.attempts})
        run.finish(exit_code=int(status.state == "failed"))
    except wandb.Error as error:
        raise ConfigError(f"wandb refused {folder.run_id}: {' '.join(str(error).split())}") from error


def _results(folder: RunFolder) -> dict[str, Any]:
    """Return the known columns of the record, and the depth curve."""
    results = {key: value for key, value in folder.record().items() if value is not None}
    if folder.depth_curve.exists():
        rows = json.loads(folder.depth_curve.read_text(encoding="utf-8"))
        results["val_loss_nats_at_depth"] = {str(row["depth"]): row["val_loss_nats"] for row in rows}
    return results


def _digest(folder: RunFolder) -> str:
    """Return a hash of all that a history is made from."""
    names = ("record.json", "status.json")
    digest = hashlib.sha256()
    for path in (folder.metrics, *(folder.path / name for name in names), folder.depth_curve):
        digest.update(path.read_bytes() if path.exists() else b"-")
    return digest.hexdigest()
