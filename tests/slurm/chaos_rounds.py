"""Events that a sweep must be launched for: a time limit, jobs without memory, a full disk."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable

from tests.waiting import wait_for

from .scene import Scene


def time_limit(s: Scene, n: int) -> None:
    s.made.overrides += [s.fault("slow=0.6"), "cluster.resources.time_min=1", "cluster.signal_s=5"]
    s.do("jobs of one minute, of which the scheduler may take another off, for runs of 96 s")
    s.launch()
    wait_for(lambda: s.made.run(n).status().failures, 180)
    status = s.made.run(n).status()
    s.says(f"{status.failures}: {status.message}", "timeout" in status.failures, "timeout")


def out_of_memory(s: Scene, n: int) -> None:
    if s.site.strict:  # which kills what uses more than it asked for
        s.do("jobs that take 3 GiB where they asked for 1.5")
        s.launch(s.fault("takes=3"), "cluster.resources.memory_gb=1.5")
        s.made.wait_until_idle(180)
        wait_for(lambda: not s.made.run(n).is_held(), 60)
        s.launch("cluster.resources.memory_gb=1.5")
    else:
        s.made.overrides.append(s.fault("slow=0.1,memory=2"))
        s.do("jobs with room for 2 sequences where the micro-batch is 4")
        s.launch()
    wait_for(lambda: s.made.run(n).status().failures, 120)
    status = s.made.run(n).status()
    s.says(f"failures counted: {status.failures}", set(status.failures) == {"oom"}, "oom")
    wait_for(lambda: s.made.run(n).config().training.micro_batch == 2, 60)
    s.says(f"micro_batch_changed={s.made.run(n).record()['micro_batch_changed']}", True, "")


def full_disk(s: Scene, n: int) -> None:
    disk = s.made.root
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], check=True)
    s.do("a disk that others fill up")
    s.launch()
    s.victim()
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(65536))
    s.made.wait_until_idle(180)
    text = s.ask("status")
    s.says(text.splitlines()[-1], "Traceback" not in text, "no traceback")
    refused = s.ask("launch")
    s.says(refused, "Traceback" not in refused and "No space left" in refused, "no space left, and where")
    filler.unlink()
    s.launch()


ROUNDS: list[Callable[[Scene, int], None]] = [time_limit, out_of_memory, full_disk]
HALVING = out_of_memory  # its runs end with half the micro-batch
