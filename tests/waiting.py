"""Wait for what another process, a file system or a scheduler brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


def wait_for(
    condition: Callable[[], object], seconds: float = 300.0, what: Callable[[], object] = str
) -> None:
    """Return once `condition` is true; after `seconds` the test fails with what `what` returns."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {seconds:g} s {what()}")
        time.sleep(0.01)
