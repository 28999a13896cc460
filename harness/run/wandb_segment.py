"""A run's wandb history made from metrics.jsonl, under its stable id.

Offline wandb cannot resume a run (each start opens another segment at step 0) and a killed process loses its
last seconds. So an offline segment is never written while training: it is made anew from metrics.jsonl,
which is the truth.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

from harness.run.config import LoggerConfig
from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from harness.run.wandb_start import start_wandb
from harness.storage.files import read_json, write_json
from model.config_validation import ConfigError

Mode = Literal["offline", "online"]
STAMP = "synced.json"  # says from what the segment was made


def leave_segment(folder: RunFolder) -> None:
    """Leave the offline segment of an attempt that has ended, where the run's logger asks for it.

    What goes wrong with wandb is a warning: the run has lost nothing.
    """
    logger = folder.config().logger
    if logger.name != "wandb" or logger.mode != "offline":
        return
    try:
        rebuild(folder, logger, "offline")
    except Exception as error:
        warnings.warn(f"no wandb segment of {folder.run_id} ({error}): loopscale sync makes it", stacklevel=2)


def rebuild(folder: RunFolder, logger: LoggerConfig, mode: Mode) -> bool:
    """Make the run's wandb history from metrics.jsonl: every step once, its configuration and its record.

    Offline, the segment `<run>/wandb/offline-run-*` replaces the one before; online, the history on the
    server is replaced. Returns False where nothing has changed since the last time or nothing is measured
    yet. Raises ConfigError for metrics that wandb or its server refuses.
    """
    lines = read_metrics(folder.metrics)
    stamp = {"source": _digest(folder), "mode": mode, "project": logger.project, "entity": logger.entity}
    target = folder.path / "wandb"
    stands = mode == "online" or any(target.glob(f"offline-run-*-{folder.run_id}"))
    if not lines or (stands and (target / STAMP).exists() and read_json(target / STAMP) == stamp):
        return False
    with tempfile.TemporaryDirectory(prefix=".wandb-", dir=folder.path) as scratch:
        _write(folder, logger, mode, Path(scratch), lines)
        if mode == "offline":
            target.mkdir(exist_ok=True)
            for old in target.glob(f"offline-run-*-{folder.run_id}"):
                shutil.rmtree(old)
            (segment,) = (Path(scratch) / "wandb").glob(f"offline-run-*-{folder.run_id}")
            segment.rename(target / segment.name)
    target.mkdir(exist_ok=True)
    write_json(target / STAMP, stamp)
    return True


def _write(
    folder: RunFolder, logger: LoggerConfig, mode: Mode, scratch: Path, lines: list[dict[str, Any]]
) -> None:
    import wandb

    try:
        run = start_wandb(
            logger, mode=mode, resume=None, folder=scratch, run_id=folder.run_id, sweep=folder.sweep
        )
        run.config.update(dataclasses.asdict(folder.config()))
        for line in lines:
            run.log(line, step=int(line["step"]))
        status = folder.status()
        run.summary.update({**_results(folder), "status": str(status), "attempts": status.attempts})
        run.finish(exit_code=int(status.state == "failed"))
    except wandb.Error as error:
        raise ConfigError(f"wandb refused {folder.run_id}: {' '.join(str(error).split())}") from error


def _results(folder: RunFolder) -> dict[str, Any]:
    """Return the record without what is not known, and the depth curve."""
    results = {key: value for key, value in folder.record().items() if value is not None}
    if folder.depth_curve.exists():
        rows = json.loads(folder.depth_curve.read_text(encoding="utf-8"))
        results["val_loss_nats_at_depth"] = {str(row["depth"]): row["val_loss_nats"] for row in rows}
    return results


def _digest(folder: RunFolder) -> str:
    """Return a hash of all that a segment is made from."""
    digest = hashlib.sha256()
    for path in (
        folder.metrics,
        folder.path / "record.json",
        folder.path / "status.json",
        folder.depth_curve,
    ):
        digest.update(path.read_bytes() if path.exists() else b"-")
    return digest.hexdigest()
