"""Several processes that train one run together, as torchrun would start them, but forked in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.run.metrics import last_metrics
from tests.waiting import wait_for

# Forked from a server that has imported torch and done nothing with it: no threads are torn apart.
CONTEXT = multiprocessing.get_context("forkserver")
# The latter two are what sharding imports.
CONTEXT.set_forkserver_preload(["harness.training.job", "torch.distributed.fsdp", "torch._dynamo"])


PATIENCE_S = 240  # for what takes a second on a quiet machine


def as_it_is(rank: int) -> None:
    """Prepare nothing."""


def start(
    world: int,
    folders: list[Path],
    cache: Path,
    hold_at: int | None = None,
    prepare: Callable[[int], None] = as_it_is,
) -> list[BaseProcess]:
    """Start `world` processes that run the jobs of `folders` one after the other, held as by `hold`.

    Each calls `prepare` with its rank first, a function that can be pickled.
    """
    port = free_port()
    processes = [
        CONTEXT.Process(target=_member, args=(rank, world, port, folders, cache, hold_at, prepare))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def start_held(folder: Path, cache: Path, step: int) -> BaseProcess:
    """Start a process that runs the job of `folder` alone, held at `step`."""
    process = CONTEXT.Process(target=_held, args=(folder, cache, step))
    process.start()
    return process


def wait_for_hold(folder: Path, step: int) -> None:
    """Return once the job of `folder` has come to the step at which it is held."""
    metrics = folder / "metrics.jsonl"
    wait_for(
        lambda: last_metrics(metrics).get("step", 0) >= step, what=lambda: f"for step {step} of {folder}"
    )


def let_go(folder: Path) -> None:
    """Let the job of `folder` go on."""
    (folder / "go").touch()


def join(processes: list[BaseProcess]) -> list[int | None]:
    """Wait for the end of processes; return their exit codes."""
    for process in processes:
        process.join(timeout=PATIENCE_S)
    return [process.exitcode for process in processes]


def run_together(world: int, folders: list[Path], cache: Path) -> None:
    """Run the jobs of `folders` with `world` processes; fails where one of them fails."""
    assert join(start(world, folders, cache)) == [0] * world


def _member(
    rank: int,
    world: int,
    port: int,
    folders: list[Path],
    cache: Path,
    hold_at: int | None,
    prepare: Callable[[int], None],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from harness.distributed.process_group import connected
    from harness.run.folder import RunFolder
    from harness.training.job import run_job

    prepare(rank)
    with connected(RunFolder(folders[0]).config().guardrails.peer_timeout_s):
        for folder in folders:
            run_job(folder, cache, hold(folder, hold_at))


def _held(folder: Path, cache: Path, step: int) -> None:
    from harness.training.job import run_job

    run_job(folder, cache, hold(folder, step))


def hold(folder: Path, step: int | None) -> Callable[[], bool]:
    """Return a `stop_requested` that waits from `step` on until the test lets go; it asks for no stop."""
    (folder / "go").unlink(missing_ok=True)

    def stop_requested() -> bool:
        while step is not None and not (folder / "go").exists():
            if last_metrics(folder / "metrics.jsonl").get("step", 0) < step:
                break
            time.sleep(0.005)
        return False

    return stop_requested


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
