"""Several processes that train one run together, as torchrun would start them, but forked in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

# Forked from a server that has imported torch and done nothing with it: no threads are torn apart.
CONTEXT = multiprocessing.get_context("forkserver")
# The latter two are what sharding imports.
CONTEXT.set_forkserver_preload(["harness.training.job", "torch.distributed.fsdp", "torch._dynamo"])


def start(world: int, folders: list[Path], cache: Path) -> list[BaseProcess]:
    """Start `world` processes that run the jobs of `folders` one after the other."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=_member, args=(rank, world, port, folders, cache)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def run_together(world: int, folders: list[Path], cache: Path) -> None:
    """Run the jobs of `folders` with `world` processes; fails where one of them fails."""
    processes = start(world, folders, cache)
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0] * world


def _member(rank: int, world: int, port: int, folders: list[Path], cache: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from harness.distributed.process_group import connected
    from harness.training.job import run_job

    with connected():
        for folder in folders:
            run_job(folder, cache)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
