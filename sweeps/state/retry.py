"""What follows a failure: the run starts again as it is or with a smaller micro-batch, or stays failed."""

from __future__ import annotations

import dataclasses

from harness.run.folder import RunFolder, Status
from sweeps.config.cluster import RetryConfig
from sweeps.state.ledger import UNREADABLE, state_of


def prepare_attempt(run: RunFolder, status: Status, retry: RetryConfig) -> bool:
    """Make an open run ready for its next attempt; return False if it cannot be and stays failed."""
    if status.state != "failed":
        return True
    if retry.rule(status.failure_class).action == "halve_micro_batch" and not halve_micro_batch(run):
        run.set_status(dataclasses.replace(status, message=f"{status.message} (at a micro-batch of 1)"))
        return False
    run.set_status(dataclasses.replace(status, state="submitted", failure_class=""), sync=False)
    return True


def halve_micro_batch(run: RunFolder) -> bool:
    """Halve the micro-batch of a run and mark its record; return False if it is one sequence already.

    What is halved is the micro-batch of the last attempt, whether configured or measured. The global batch
    and everything that is trained stay as they are; only the order of summation changes.
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
    """Open a failed run again with no failures counted; its checkpoints stay, and a damaged run."""
    status = state_of(run)
    if status.state == "failed" and status.failure_class != UNREADABLE:
        run.set_status(dataclasses.replace(status, state="submitted", failure_class="", failures={}))
