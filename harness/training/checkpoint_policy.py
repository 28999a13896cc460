"""When a checkpoint is due: when the run is asked to stop, on a timer, at marked steps, at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.run.folder import RunFolder
from harness.training.checkpoint import save
from harness.training.session import Session


class Stopped(RuntimeError):
    """The run was asked to stop and has saved a checkpoint; it continues when started again."""


class Saver:
    """Save a session's checkpoints; all its processes agree on when."""

    def __init__(self, folder: RunFolder, session: Session, flush: Callable[[], None] = lambda: None) -> None:
        self._folder, self._session, self._flush = folder, session, flush
        self._saved_at = time.monotonic()
        self._saved_step = session.first_step  # stands already, from the attempt before

    def between_steps(self, step: int, stop: Callable[[], bool]) -> None:
        """Save after `step` steps if that is due; raises Stopped where any process was asked to stop."""
        training = self._session.run.training
        late = time.monotonic() - self._saved_at > training.checkpoint_every_s
        stopping, due = self._session.ranks.any([stop(), late])
        if stopping or due or step in training.checkpoint_at:
            self.save(step)
        if stopping:
            raise Stopped(f"stopped at step {step} of {self._session.run.steps}")

    def save(self, step: int) -> None:
        """Save after `step` steps unless that checkpoint stands already."""
        if step == self._saved_step > 0:
            return
        training = self._session.run.training
        self._flush()  # the metrics up to this step must not be lost while the checkpoint is not
        self._session.lap()
        save(
            self._folder.checkpoints,
            self._session.checkpoint(step),
            keep=training.keep_checkpoints,
            marked=training.checkpoint_at,
            ranks=self._session.ranks,
        )
        self._saved_at, self._saved_step = time.monotonic(), step
