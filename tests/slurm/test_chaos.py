"""A few events of validation/chaos.py, one after the other, on a sweep of each site."""

from __future__ import annotations

import random

import pytest

from .chaos_events import process_killed, torn_status
from .chaos_hands import launch_interrupted
from .conftest import EVENT, turn
from .scene import Scene


@pytest.fixture(params=[False, True], ids=["generous", "strict"])
def where(request, site):
    """One of the clusters, with a turn at the second as `_turn` has one at the first."""
    if not request.param:
        yield site
        return
    strict = request.getfixturevalue("strict_site")
    with turn(strict, alone=False):
        yield strict


def test_a_sweep_survives_events_and_what_is_said_is_true(sweep, calm, tmp_path, where):
    (tmp_path / "trace").mkdir()
    scene = Scene(sweep("chaos", *EVENT), where, tmp_path / "trace", 60, random.Random(1))
    for event in (process_killed, torn_status, launch_interrupted):
        victim = scene.victim() if scene.made.folder.exists() else (scene.launch(), scene.victim())[1]
        assert victim is not None
        event(scene, victim)
        assert not scene.wrong, (event.__name__, scene.wrong, scene.said)
    scene.made.finish()
    assert scene.made.losses() == calm
