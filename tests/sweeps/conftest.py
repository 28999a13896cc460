"""Runs that several files evaluate."""

from __future__ import annotations

import pytest

import loopscale


@pytest.fixture
def trained(tiny, tmp_path):
    record = loopscale.train([*tiny, "tokens=2560", "model.sequence_length=64"])
    return tmp_path / "runs" / "single" / record["run_id"]
