"""Where the processes of one submitit job find each other, for torch."""

from __future__ import annotations

import os
import random

# By default Linux gives ports from 32768 on to outgoing connections, so one from there may be in use already.
PORTS = range(20000, 32768)


def export_rendezvous() -> None:
    """Export rank, world size, address and port of this process's job, unless torchrun has done so.

    The port follows from the job's id, so that all its processes know it without a word. MASTER_PORT, where
    it is set, comes before; a shell's own reaches every job that is submitted with its environment.
    """
    if "RANK" in os.environ:
        return
    import submitit
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.setdefault("MASTER_PORT", str(job_port(submitit.JobEnvironment().job_id)))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def job_port(job_id: str) -> int:
    """Return the port at which the processes of a job meet, the same wherever its id is known."""
    return random.Random(job_id).choice(PORTS)
