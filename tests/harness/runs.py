"""What two runs of one configuration must have in common."""

from __future__ import annotations

import torch

from harness.run.metrics import read_metrics
from harness.run.record import MEASURED
from harness.training.checkpoint import checkpoint_folders, load

VOLATILE = {*MEASURED, "attempts", "sweep"}


def weights(folder):
    return load(checkpoint_folders(folder.checkpoints)[-1]).model


def state(folder):
    last = load(checkpoint_folders(folder.checkpoints)[-1])
    return {**last.model, **{f"optimizer {name}": tensor for name, tensor in last.optimizer.items()}}


def stable(line):
    return {key: value for key, value in line.items() if key not in VOLATILE}


def assert_same_bits(ours, theirs):
    """Compare weights, optimiser, record, metrics and depth curve of two finished runs."""
    left, right = state(ours), state(theirs)
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    assert stable(ours.record()) == stable(theirs.record())
    lines = [[stable(line) for line in read_metrics(run.metrics)] for run in (ours, theirs)]
    assert lines[0] == lines[1]
    assert ours.depth_curve.read_text() == theirs.depth_curve.read_text()
