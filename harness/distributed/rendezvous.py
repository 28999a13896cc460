"""Address and port at which the processes of one submitit job connect. Imports no torch."""

from __future__ import annotations

import os
import random

# Below the range from 32768 on that Linux uses for outgoing connections by default.
PORTS = range(20000, 32768)


def export_rendezvous() -> None:
    """Export rank, world size, address and port of this process's job, unless torchrun has done so.

    The port is computed from the job's id, the same in all processes. MASTER_PORT takes precedence if it is
    set, also by a shell whose environment was passed to the job.
    """
    if "RANK" in os.environ:
        return
    import submitit
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.setdefault("MASTER_PORT", str(job_port(submitit.JobEnvironment().job_id)))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def job_port(job_id: str) -> int:
    """Return the port at which the processes of a job connect."""
    return random.Random(job_id).choice(PORTS)
