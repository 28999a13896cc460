"""Faults for jobs under test, put on their PYTHONPATH by a profile's lines; LOOPSCALE_FAULT says which.

slow=SECONDS sleeps at every micro-batch, memory=SEQUENCES has room for no more of them at once, takes=GIB
takes so much memory, error raises, trace=FOLDER notes the time and a checksum of every micro-batch that is
trained, in a file for each run and process.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
import zlib
from pathlib import Path

FAULTS = dict(part.partition("=")[::2] for part in os.environ.get("LOOPSCALE_FAULT", "").split(",") if part)


class Patch(importlib.abc.MetaPathFinder):
    """Wrap the model's loss as soon as the model is imported."""

    def find_spec(self, name, path, target=None):
        if name != "model.transformer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def load(module):
            execute(module)
            wrap(module.LoopedTransformer)

        spec.loader.exec_module = load
        return spec


def wrap(model) -> None:
    loss = model.loss

    def faulty(self, inputs, *rest, **named):
        if "slow" in FAULTS:
            time.sleep(float(FAULTS["slow"]))
        if "memory" in FAULTS and len(inputs) > int(FAULTS["memory"]):
            import torch

            raise torch.OutOfMemoryError(f"no memory for {len(inputs)} sequences")
        if "takes" in FAULTS:
            self.taken = b"x" * int(float(FAULTS["takes"]) * 2**30)
            time.sleep(30)
        if "error" in FAULTS:
            raise ZeroDivisionError("the training function is broken")
        if "trace" in FAULTS and self.training:
            run = Path("/proc/self/fd/1").readlink().parts[-3]  # its output is RUN/logs/output.txt
            with Path(FAULTS["trace"], f"{run}.{os.getpid()}").open("a") as trace:
                trace.write(f"{time.time()} {zlib.crc32(inputs.cpu().numpy().tobytes())}\n")
        return loss(self, inputs, *rest, **named)

    model.loss = faulty


if FAULTS:
    sys.meta_path.insert(0, Patch())
