"""What a cell costs: throughput from finished runs, from calibration, or estimated from peak."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.run.config import RunConfig
from harness.storage.files import read_json
from model.config_validation import ConfigError, build
from sweeps.backends.base import SchedulerError
from sweeps.backends.job_array import array_folder, read_arrays, read_submitted
from sweeps.config.cluster import ClusterConfig, Resources

MEASURED, SIMILAR, CALIBRATED = "measured", "measured on the same scale", "calibrated"
ESTIMATED, UNKNOWN = "estimated from peak", "speed unknown"

Shape = tuple[Any, ...]
Hardware = tuple[Any, ...]


def shape_of(scale: str, kind: str, mean_recurrence: float, batch_tokens: int) -> Shape:
    """Name what decides the throughput of a run on given hardware, as far as the runs table knows it."""
    return scale, kind, float(mean_recurrence), int(batch_tokens)


def hardware_of(resources: Resources) -> Hardware:
    """Name what a job of these resources runs on, within one cluster."""
    wanted = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "partition", "constraint")
    return tuple(getattr(resources, name) for name in (*wanted, "parallel_runs"))


def cluster_name(cluster: ClusterConfig) -> str:
    """Return the name under which a cluster's speeds are kept; a SLURM cluster may have to be asked for it.

    Raises ConfigError or SchedulerError where it cannot be.
    """
    if cluster.name or cluster.kind != "slurm":
        return cluster.name or cluster.kind
    from sweeps.backends.slurm import Slurm

    return Slurm(cluster).name


@dataclass(kw_only=True)
class Prices:
    """Throughputs known of one cluster, in nominal FLOPs per second of a whole run, all its devices together.

    They are kept by hardware and shape: what one kind of device needs says nothing of another.
    """

    cluster: ClusterConfig
    measured: dict[tuple[Hardware, Shape], list[float]] = field(default_factory=lambda: defaultdict(list))
    calibrated: dict[tuple[Hardware, Shape], float] = field(default_factory=dict)

    def add_record(self, record: dict[str, Any], resources: Resources) -> None:
        """Learn from the record of a run that was trained with these resources."""
        if record.get("tokens_per_s"):
            shape = shape_of(*(record[name] for name in ("scale", "kind", "mean_recurrence", "batch_tokens")))
            rate = record["tokens_per_s"] * record["nominal_flops"] / record["tokens"]
            self.measured[hardware_of(resources), shape].append(rate)

    def flops_per_s(self, shape: Shape, resources: Resources) -> tuple[float | None, str]:
        """Return the throughput of a run of this shape and where the figure comes from."""
        hardware = hardware_of(resources)
        if (hardware, shape) in self.measured:
            return statistics.median(self.measured[hardware, shape]), MEASURED
        if (hardware, shape) in self.calibrated:
            return self.calibrated[hardware, shape], CALIBRATED
        alike = (hardware, shape[0])
        same_scale = [
            rate for (at, k), rates in self.measured.items() if (at, k[0]) == alike for rate in rates
        ]
        same_scale += [rate for (at, k), rate in self.calibrated.items() if (at, k[0]) == alike]
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
            detail = ": set cluster.device_peak_flops_per_s, or time it with plan calibrate=true"
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


def known_prices(
    cluster: ClusterConfig, root: Path, sweep: Path
) -> tuple[Prices, dict[str, Resources | None]]:
    """Return what was calibrated on a cluster under `root`, and what each submitted run of a sweep asked for.

    That is None for a run that went to another cluster. Where nothing was calibrated or submitted the
    cluster is not asked for its name; of one that does not answer nothing is known.
    """
    arrays = read_arrays(sweep)
    found, asked = Prices(cluster=cluster), dict[str, Resources | None]()
    if not arrays and not (root / ".calibration").exists():
        return found, asked
    try:
        name = cluster_name(replace(cluster, patience_s=0.0))
    except (ConfigError, SchedulerError):
        name = ""
    kept = (root / ".calibration" / name).glob("*.json") if name else ()
    for path in sorted(kept, key=lambda path: path.stat().st_mtime):
        fields = read_json(path)
        place = hardware_of(build(Resources, fields["resources"], f"{path}: resources."))
        found.calibrated[place, shape_of(*fields["shape"])] = fields["flops_per_s"]
    for array in arrays:
        submitted = read_submitted(array_folder(sweep, array))
        here = submitted is not None and submitted.cluster == name
        asked |= dict.fromkeys(array.runs, array.resources if here else None)
    return found, asked
