"""Settings of a run that are `auto`: what they stand for on the device that its cluster gives it.

A run's own configuration never says `auto`. What a run id names is therefore one computation, wherever the
run is trained. Imports no torch.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from sweeps.config.cluster import ClusterConfig
from sweeps.config.gpus import visible_gpus

Device = Literal["cpu", "cuda"]

AUTO = "auto"
_MEANING: dict[tuple[str, str], dict[Device, Any]] = {  # by section and key
    ("training", "precision"): {"cpu": "float32", "cuda": "bfloat16"},
    ("training", "compile"): {"cpu": False, "cuda": True},
    ("optimizer", "newton_schulz_dtype"): {"cpu": "float32", "cuda": "bfloat16"},
}


def device_of(fields: dict[str, Any], cluster: ClusterConfig, scale: str) -> Device:
    """Return the device that a run of a scale gets: its `training.device`, or what the cluster has for it.

    A job has a GPU if its profile asks for one; on this machine a run has one if torch can see any.
    """
    training = fields.get("training")
    named = training.get("device") if isinstance(training, dict) else None
    if named in ("cpu", "cuda"):
        return "cuda" if named == "cuda" else "cpu"
    if cluster.trains_here:
        return "cuda" if visible_gpus() and _torch_has_cuda() else "cpu"
    return "cuda" if cluster.resources_of(scale).gpus_per_node else "cpu"


def resolve(fields: dict[str, Any], device: Device) -> dict[str, Any]:
    """Return the fields of a run with every `auto` of this module replaced."""
    resolved = dict(fields)
    for (section, key), meaning in _MEANING.items():
        settings = resolved.get(section)
        if isinstance(settings, dict) and settings.get(key) == AUTO:
            resolved[section] = settings | {key: meaning[device]}
    return resolved


def _torch_has_cuda() -> bool:
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
