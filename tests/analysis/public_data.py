"""Published data kept beside the checkout; a test that needs them skips where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "scaling"


def table(name: str) -> pd.DataFrame:
    """Read one published table; in CI its absence is a failure, elsewhere a skip with its reason."""
    path = FOLDER / f"{name}.csv"
    if path.is_file():
        return pd.read_csv(path)
    reason = f"{path} is absent: published data are not part of the project"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
