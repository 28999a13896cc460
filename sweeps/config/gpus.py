"""Which GPUs runs side by side use. Asks no driver: a process that does cannot be forked afterwards."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEVICES = Path("/dev")


def visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES lists this process's GPUs; without it, all of them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name and name != "NoDevFiles"]
    files = (re.fullmatch(r"nvidia(\d+)", path.name) for path in DEVICES.glob("nvidia*"))
    return [str(number) for number in sorted(int(match[1]) for match in files if match)]


def gpu_of(slot: int, slots: int) -> str | None:
    """Return the GPU of one of `slots` runs side by side, in turns; None if a run sees all that there are."""
    names = visible_gpus()
    return names[slot % len(names)] if len(names) > 1 and slots > 1 else None
