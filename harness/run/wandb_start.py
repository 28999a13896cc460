"""Start a wandb run under the run's stable id; offline, nothing looks for a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from harness.run.config import LoggerConfig


def start_wandb(
    logger: LoggerConfig,
    *,
    mode: Literal["offline", "online"],
    resume: Literal["allow"] | None,
    folder: Path,
    run_id: str,
    sweep: str,
) -> Any:
    """Return a wandb run that keeps its files in `folder` and is grouped by sweep.

    `resume="allow"` continues the run where it is on the server; None begins its history anew.
    """
    if mode == "offline":
        # wandb reports its own errors to a host that it looks up even offline; decided when it is imported.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    return wandb.init(
        project=logger.project,
        entity=logger.entity,
        id=run_id,
        name=run_id,
        group=sweep,
        dir=folder,
        mode=mode,
        resume=resume,
        settings=wandb.Settings(
            silent=True, disable_git=True, console="off", x_disable_stats=True, x_save_requirements=False
        ),
    )
