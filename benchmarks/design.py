"""How long does it take to simulate 1,000 studies of the published 36-cell grid?

python benchmarks/design.py [studies=1000] [analysts=40]

Seconds of the clock and of the processor for `plan design=true` without its figure: all studies through the
three estimators, and some through the whole analysis with its bootstrap. One process, one thread.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale


def main(studies: int = 1000, analysts: int = 40) -> None:
    """Time one design and print what took how long."""
    study = loopscale.compose(
        [
            "sweep=isoflop_140m",
            "sweep.control=none",
            "assume.law=paper_optima",
            "assume.parameter_count=non_embedding",
            f"assume.studies={studies}",
            f"assume.analysts={analysts}",
        ]
    )
    from sweeps.planning.design import design

    marks: dict[str, list[float]] = {}

    def progress(stage: str, done: float) -> None:
        marks.setdefault(stage, []).append(time.perf_counter())

    clock, processor = time.perf_counter(), time.process_time()
    (found,) = design(study, progress)
    seconds, used = time.perf_counter() - clock, time.process_time() - processor
    for stage, times in marks.items():
        print(f"{stage}: {times[-1] - times[0]:.1f} s")
    print(
        f"{found.runs} cells, {studies} studies, {analysts} analyses: {seconds:.1f} s, {used:.1f} s of one "
        f"processor; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main(**{name: int(value) for name, value in (text.split("=", 1) for text in sys.argv[1:])})
