"""The hours of a cell: throughput from finished runs, from calibration, or estimated from the peak."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.run.config import RunConfig
from harness.run.folder import RunFolder
from harness.storage.files import read_json
from model.config_validation import ConfigError, build
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.config.next_command import command_line
from sweeps.config.study import StudyConfig

MEASURED, SIMILAR, CALIBRATED = "measured", "measured on the same scale", "calibrated"
ROUGH = "calibrated on a busy machine"
ESTIMATED, UNKNOWN = "estimated from peak", "speed unknown"

Shape = tuple[Any, ...]
Hardware = tuple[Any, ...]


def shape_of(scale: str, kind: str, mean_recurrence: float, batch_tokens: int) -> Shape:
    """Return what decides the throughput of a run on given hardware, in columns of the runs table."""
    return scale, kind, float(mean_recurrence), int(batch_tokens)


def hardware_of(resources: Resources) -> Hardware:
    """Return the fields of `resources` that decide what a job runs on, within one cluster."""
    names = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "partition", "constraint")
    return tuple(getattr(resources, name) for name in (*names, "parallel_runs"))


def cluster_name(cluster: ClusterConfig) -> str:
    """Return the name under which a cluster's speeds are stored; its scheduler may be asked for it.

    Raises
    ------
    ConfigError, SchedulerError : the cluster has no name or its scheduler does not answer.
    """
    from sweeps.backends.registry import open_backend

    return cluster.name or open_backend(cluster).name


@dataclass(kw_only=True)
class Throughputs:
    """The known throughputs of one cluster, by hardware and shape.

    In nominal FLOPs per second of a whole run, all its devices together.
    """

    cluster: ClusterConfig
    measured: dict[tuple[Hardware, Shape], list[float]] = field(default_factory=lambda: defaultdict(list))
    calibrated: dict[tuple[Hardware, Shape], float] = field(default_factory=dict)
    rough: set[tuple[Hardware, Shape]] = field(default_factory=set)  # of those: timed on a busy machine

    def add_record(self, record: dict[str, Any], resources: Resources) -> None:
        """Add the throughput in the record of a run that was trained with these resources."""
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
            source = ROUGH if (hardware, shape) in self.rough else CALIBRATED
            return self.calibrated[hardware, shape], source
        similar = (hardware, shape[0])
        same_scale = [
            rate for (at, k), rates in self.measured.items() if (at, k[0]) == similar for rate in rates
        ]
        same_scale += [rate for (at, k), rate in self.calibrated.items() if (at, k[0]) == similar]
        if same_scale:
            return statistics.median(same_scale), SIMILAR
        peak = self.cluster.device_peak_flops_per_s
        if peak is not None:
            return peak * self.cluster.device_utilisation * resources.devices, ESTIMATED
        return None, UNKNOWN


def describe_sources(sources: Iterable[str], study: StudyConfig) -> str:
    """Return where the hours of a plan come from, as text; `sources` has one entry per cell."""
    from sweeps.backends.registry import open_backend

    counts, cluster = Counter(sources), study.cluster
    if not counts:
        return "no cell to price"
    timed = command_line("plan", study.overrides, "calibrate=true")
    parts = []
    for source, count in counts.most_common():
        detail = ""
        if source == ESTIMATED:
            peak = cluster.device_peak_flops_per_s
            detail = f" ({peak:.3g} FLOP/s x utilisation {cluster.device_utilisation:g}), not measured"
            if not open_backend(cluster).simulated:
                detail += f"; {timed} measures it"
        if source == ROUGH:
            detail = f"; {timed} repeats it"
        if source == UNKNOWN:
            detail = f": set cluster.device_peak_flops_per_s, or time it: {timed}"
        cells = "" if len(counts) == 1 else f"{count} cells "
        parts.append(f"{cells}{source}{detail}")
    return "; ".join(parts)


def calibration_file(root: Path, cluster: str, run: RunConfig, resources: Resources) -> Path:
    """Return the file of the measured throughput of a run's shape on a cluster."""
    training = asdict(run.training)
    fields = [asdict(run.model), training, run.optimizer.name, asdict(resources)]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]
    mean = run.model.mean_recurrence
    return root / ".calibration" / cluster / f"{run.scale}-{run.model.table_kind}-mu{mean:g}-{digest}.json"


def known_throughputs(
    cluster: ClusterConfig, root: Path, sweep: Path
) -> tuple[Throughputs, dict[str, Resources | None]]:
    """Return what was calibrated on a cluster under `root`, and the resources of a sweep's submitted runs.

    The resources are None for a run that was submitted to another cluster. The cluster is asked for its name
    only if there are calibrations or submissions; nothing is known of one that does not answer.
    """
    throughputs, submitted_with = Throughputs(cluster=cluster), dict[str, Resources | None]()
    calibrations = root / ".calibration"
    if not sweep.exists() and not calibrations.exists():
        return throughputs, submitted_with
    from sweeps.backends.base import SchedulerError
    from sweeps.backends.job_array import array_folder, read_arrays, read_submitted

    arrays = read_arrays(sweep)
    if not arrays and not calibrations.exists():
        return throughputs, submitted_with
    try:
        name = cluster_name(replace(cluster, patience_s=0.0))
    except (ConfigError, SchedulerError):
        name = ""
    files = (calibrations / name).glob("*.json") if name else ()
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        fields = read_json(path)
        hardware = hardware_of(build(Resources, fields["resources"], f"{path}: resources."))
        key = hardware, shape_of(*fields["shape"])
        throughputs.calibrated[key] = fields["flops_per_s"]
        (throughputs.rough.add if fields.get("busy") else throughputs.rough.discard)(key)
    for array in arrays:
        submitted = read_submitted(array_folder(sweep, array))
        is_here = submitted is not None and submitted.cluster == name
        submitted_with |= dict.fromkeys(array.runs, array.resources if is_here else None)
    return throughputs, submitted_with


def add_hours(rows: list[dict[str, Any]], study: StudyConfig, folder: Path) -> None:
    """Add devices, hours and their source to every row, from the speeds that are known."""
    throughputs, submitted = known_throughputs(study.cluster, Path(study.root), folder)
    for row in rows:
        if row["status"] == "done" and (resources := _trained_with(row, study, submitted)):
            throughputs.add_record(RunFolder(folder / str(row["run_id"])).record(), resources)
    if any(_flops_per_s(row, study, throughputs)[1] in (ESTIMATED, UNKNOWN) for row in rows):
        _learn_from_others(throughputs, study, folder)
    for row in rows:
        resources = study.cluster.resources_of(row["scale"])
        rate, source = _flops_per_s(row, study, throughputs)
        devices = resources.devices / resources.parallel_runs
        row["devices"] = devices
        row["hours"] = row["nominal_flops"] / rate * devices / 3600 if rate else math.nan
        row["price"] = source


def _trained_with(
    row: dict[str, Any], study: StudyConfig, submitted: dict[str, Resources | None]
) -> Resources | None:
    """Return the resources of a finished run on the study's cluster, None if it was trained elsewhere."""
    from sweeps.backends.registry import open_backend

    if row["run_id"] in submitted or not open_backend(study.cluster).pulls_runs:
        return submitted.get(row["run_id"])
    return study.cluster.resources_of(row["scale"])  # nothing was submitted


def _learn_from_others(throughputs: Throughputs, study: StudyConfig, folder: Path) -> None:
    """Add the speeds of the collected runs of other sweeps under the same root."""
    import pandas as pd

    for path in sorted(folder.parent.glob("*/runs.parquet")):
        if path.parent == folder:
            continue
        table = pd.read_parquet(path)
        usable = table["scale"].isin(list(study.runs)) & (table["tokens_per_s"] > 0)
        submitted = known_throughputs(study.cluster, folder.parent, path.parent)[1] if usable.any() else {}
        for row in table[usable].to_dict("records"):
            record = {str(name): value for name, value in row.items()}
            if resources := _trained_with(record, study, submitted):
                throughputs.add_record(record, resources)


def _flops_per_s(
    row: dict[str, Any], study: StudyConfig, throughputs: Throughputs
) -> tuple[float | None, str]:
    shape = shape_of(row["scale"], row["kind"], row["mean_recurrence"], row["batch_tokens"])
    return throughputs.flops_per_s(shape, study.cluster.resources_of(row["scale"]))
