"""What a cell costs: throughput from finished runs, from calibration, or estimated from peak."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.files import read_json
from sweeps.cluster_config import ClusterConfig, Resources

MEASURED, SIMILAR, CALIBRATED = "measured", "measured on the same scale", "calibrated"
ESTIMATED, UNKNOWN = "estimated from peak", "unknown"

Shape = tuple[Any, ...]


def shape_of(scale: str, kind: str, mean_recurrence: float, batch_tokens: int) -> Shape:
    """Name what decides the throughput of a run on one machine, as far as the runs table knows it."""
    return scale, kind, float(mean_recurrence), int(batch_tokens)


@dataclass(kw_only=True)
class Prices:
    """Throughputs known so far, in nominal FLOPs per second of a whole run, all its devices together."""

    cluster: ClusterConfig
    measured: dict[Shape, list[float]] = field(default_factory=lambda: defaultdict(list))
    calibrated: dict[Shape, float] = field(default_factory=dict)

    def add_record(self, record: dict[str, Any]) -> None:
        """Learn from the record of a finished run."""
        if record.get("tokens_per_s"):
            shape = shape_of(*(record[name] for name in ("scale", "kind", "mean_recurrence", "batch_tokens")))
            rate = record["tokens_per_s"] * record["nominal_flops"] / record["tokens"]
            self.measured[shape].append(rate)

    def flops_per_s(self, shape: Shape, resources: Resources) -> tuple[float | None, str]:
        """Return the throughput of a run of this shape and where the figure comes from."""
        if shape in self.measured:
            return statistics.median(self.measured[shape]), MEASURED
        if shape in self.calibrated:
            return self.calibrated[shape], CALIBRATED
        same_scale = [
            rate for known, rates in self.measured.items() if known[0] == shape[0] for rate in rates
        ]
        same_scale += [rate for known, rate in self.calibrated.items() if known[0] == shape[0]]
        if same_scale:
            return statistics.median(same_scale), SIMILAR
        peak = self.cluster.device_peak_flops_per_s
        if peak is not None:
            return peak * self.cluster.device_utilisation * resources.devices, ESTIMATED
        return None, UNKNOWN


def in_words(origins: Iterable[str], cluster: ClusterConfig) -> str:
    """Say where a plan's hours come from."""
    counted = Counter(origins)
    if not counted:
        return "nothing to price"
    parts = []
    for origin, count in counted.most_common():
        detail = ""
        if origin == ESTIMATED:
            peak = cluster.device_peak_flops_per_s
            detail = f" ({peak:.3g} FLOP/s x utilisation {cluster.device_utilisation:g}), not measured"
        if origin == UNKNOWN:
            detail = " (set cluster.device_peak_flops_per_s, or time it: plan calibrate=true)"
        cells = "" if len(counted) == 1 else f"{count} cells "
        parts.append(f"{cells}{origin}{detail}")
    return "; ".join(parts)


def calibration_file(root: Path, cluster: str, run: RunConfig, resources: Resources) -> Path:
    """Return where the measured throughput of a run's shape on a cluster is kept."""
    training = asdict(run.training)
    fields = [asdict(run.model), training, run.optimizer.name, asdict(resources)]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]
    mean = run.model.mean_recurrence
    return root / ".calibration" / cluster / f"{run.scale}-{run.model.table_kind}-mu{mean:g}-{digest}.json"


def read_calibrations(root: Path) -> dict[Shape, float]:
    """Return every calibrated throughput under `root`, the newest where there are several of a shape."""
    found: dict[Shape, float] = {}
    for path in sorted((root / ".calibration").glob("*/*.json"), key=lambda path: path.stat().st_mtime):
        fields = read_json(path)
        found[shape_of(*fields["shape"])] = fields["flops_per_s"]
    return found
