"""What is done about a run that failed."""

from __future__ import annotations

import loopscale
from harness.run.folder import RunFolder
from sweeps.state.retry import halve_micro_batch


def test_what_is_halved_is_what_the_last_attempt_took_at_once(tiny, tmp_path):
    loopscale.train([*tiny, "tokens=640", "training.batch_sequences=8"])
    (path,) = (tmp_path / "runs" / "single").iterdir()
    run = RunFolder(path)
    assert run.config().training.micro_batch is None and run.micro_batch() == 8
    run.set_micro_batch(4)  # as found on a device that holds no more
    assert halve_micro_batch(run) and run.config().training.micro_batch == 2
    assert halve_micro_batch(run) and run.config().training.micro_batch == 1  # it died before it took any
    assert not halve_micro_batch(run) and run.record()["micro_batch_changed"] == 1
