"""What happens to a run that failed: started again as it is, with a smaller micro-batch, or left alone."""

from __future__ import annotations

import dataclasses

from harness.run.folder import RunFolder, Status
from sweeps.config.cluster import RetryConfig


def is_open(status: Status, retry: RetryConfig) -> bool:
    """Say whether a run that nobody works on should be started: unfinished, or failed within its limit."""
    if status.state == "failed":
        return status.failures.get(status.failure_class, 0) <= retry.rule(status.failure_class).retries
    return status.state != "done"


def prepare_attempt(run: RunFolder, status: Status, retry: RetryConfig) -> bool:
    """Make an open run ready for its next attempt; says False when it cannot be and stays failed."""
    if status.state != "failed":
        return True
    if retry.rule(status.failure_class).action == "halve_micro_batch" and not halve_micro_batch(run):
        run.set_status(dataclasses.replace(status, message=f"{status.message} (at a micro-batch of 1)"))
        return False
    run.set_status(dataclasses.replace(status, state="submitted", failure_class=""), sync=False)
    return True


def halve_micro_batch(run: RunFolder) -> bool:
    """Halve the micro-batch of a run and say so in its record; False when it is one sequence already.

    What is halved is what the last attempt took at once, configured or found. The global array and everything
    that is trained stay as they are; only the order of summation changes.
    """
    config, used = run.config(), run.micro_batch()
    now = min(filter(None, (used, config.training.micro_batch, config.training.batch_sequences)))
    if now == 1:
        return False
    training = dataclasses.replace(config.training, micro_batch=now // 2)
    run.set_config(dataclasses.replace(config, training=training))
    run.set_record(run.record() | {"micro_batch_changed": 1})
    return True


def reopen(run: RunFolder) -> None:
    """Open a failed run again, with its failures forgiven; its checkpoints stay."""
    status = run.status()
    if status.state == "failed":
        run.set_status(dataclasses.replace(status, state="submitted", failure_class="", failures={}))
