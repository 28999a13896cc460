"""Is the planner's memory estimate the peak of a step? Trace the step with tensors that have no content.

python validation/memory.py [out=FILE]

For the eight published shapes at three micro-batches, in bfloat16: the peak of two micro-batches and a step
of the optimiser, as eager torch allocates and frees tensors, against `model.memory`. Nothing is random.
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.optim.parameter_groups import build_optimizer
from harness.run.config import OptimizerConfig
from model.config import ModelConfig
from model.kernels import Workload, autocast, kernels_for, reference
from model.memory import LOGITS_AT_ONCE, Precision, memory_estimate_bytes
from model.transformer import build_model

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SCALES = [
    f"{kind}_{size}" for kind in ("looped", "transformer") for size in ("140m", "370m", "770m", "1300m")
]
MICRO_BATCHES = (1, 4, 16)
MICRO_STEPS = 2  # the gradient of the first is there during the second


class AllocatedBytes(TorchDispatchMode):
    """Count the bytes of all live tensors that operators return within the block, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._storages.pop(key)


def traced_peak(config: ModelConfig, micro_batch: int, precision: Precision = "bfloat16") -> int:
    """Return the peak bytes of a training step by torch's operators, all sequences at the full depth."""
    kernels = kernels_for("reference", Workload(config=config, device="cpu"))
    on_a_gpu = patch.dict(reference._CHUNK_ELEMENTS, cpu=LOGITS_AT_ONCE)
    with on_a_gpu, FakeTensorMode(), AllocatedBytes() as allocated:
        model = build_model(config, seed=None, kernels=kernels)
        optimizer = build_optimizer(model, OptimizerConfig(newton_schulz_dtype=precision))
        tokens = torch.zeros(micro_batch, config.sequence_length, dtype=torch.int64)
        depths = [config.resolved_backprop_depth] * micro_batch
        for _ in range(MICRO_STEPS):
            with autocast(CPU, precision):
                nats = model.loss(tokens, tokens, depths, range(micro_batch), reduction="sum")
            nats.backward()
            del nats
        optimizer.step()
        return allocated.peak


def main() -> None:
    """Trace all shapes and write the table."""
    out = Path(
        dict(word.split("=", 1) for word in sys.argv[1:]).get("out", ROOT / "docs/validation/memory.json")
    )
    rows = []
    for scale in SCALES:
        config = ModelConfig(**yaml.safe_load((ROOT / f"conf/model/{scale}.yaml").read_text()))
        for micro_batch in MICRO_BATCHES:
            estimate = memory_estimate_bytes(config, micro_batch, precision="bfloat16").total
            peak = traced_peak(config, micro_batch)
            ratio = round(estimate / peak, 3)
            rows.append({"scale": scale, "micro_batch": micro_batch, "traced_gb": round(peak / 1e9, 3)})
            rows[-1] |= {"estimated_gb": round(estimate / 1e9, 3), "ratio": ratio}
            print(rows[-1], flush=True)
    result = {"command": "python validation/memory.py", "precision": "bfloat16", "rows": rows}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
