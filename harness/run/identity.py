"""Identity of a run: its science fields, their canonical JSON and its hash. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from harness.run.config import RunConfig

IDENTITY_VERSION = 1
TRAINING_SCIENCE = ("batch_sequences", "packing", "document_mask", "gradient_clip", "precision")

SHOWN = (  # have columns of their own, or are varied by a study
    *("kind", "width", "prelude_layers", "core_layers", "coda_layers", "vocabulary_size", "sequence_length"),
    *("injection", "mean_recurrence", "backprop_depth", "depth_sampling", "cooldown_fraction"),
    *("name", "adamw_learning_rate", "muon_learning_rate", "lr_scaling", "batch_sequences"),
)

Identity = dict[str, Any]
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def identity(run: RunConfig, data_digest: str) -> Identity:
    """Return the science fields of a solved `run`, without paths, host, budget or accounting.

    Fields at their default are left out. A new field with a default therefore renames no run.
    """
    assert run.steps is not None, "solve the run first"
    return {
        "identity_version": IDENTITY_VERSION,
        "model": _changed(run.model),
        "data_digest": data_digest,
        "optimizer": _changed(run.optimizer),
        "schedule": _changed(run.schedule),
        "training": _changed(run.training, TRAINING_SCIENCE),
        "steps": run.steps,
        "seed": run.seed,
    }


def recipe(run: RunConfig) -> str:
    """Return the science fields with values other than the default that have no column in the runs table."""
    parts = [
        _recipe("model", run.model),
        _recipe("optimizer", run.optimizer),
        _recipe("schedule", run.schedule),
        _words("training", _changed(run.training, TRAINING_SCIENCE)),
    ]
    return " ".join(filter(None, parts))


def run_id(run: RunConfig, data_digest: str) -> str:
    """Return `<readable>-<8 hex>`; only the hexadecimal digits identify the run."""
    return run_name(run, identity(run, data_digest))


def run_name(run: RunConfig, fields: Identity) -> str:
    """Return the run id of science fields that are those of `run`, possibly with other steps."""
    model = run.model
    depth = {"transformer": "plain", "fixed": "fixed"}.get(model.table_kind, f"mu{model.mean_recurrence:g}")
    digits = hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:8]
    return f"{run.scale}-{depth}-steps{fields['steps']}-seed{run.seed}-{digits}"


def canonical_json(fields: Identity) -> str:
    """Return JSON with sorted keys and no spaces, equal for equal identities."""
    return _encode(fields)


def difference(ours: Identity, theirs: Identity) -> str:
    """Return the fields in which two identities differ, as `key: ours / theirs`."""
    a, b = _flat(ours), _flat(theirs)
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return ", ".join(f"{key}: {a.get(key, 'default')} / {b.get(key, 'default')}" for key in keys)


@lru_cache(maxsize=4096)  # of sections that the runs of a sweep share
def _recipe(section: str, config: Any) -> str:
    return _words(section, _changed(config))


def _words(section: str, fields: dict[str, Any]) -> str:
    return " ".join(f"{section}.{key}={value}" for key, value in fields.items() if key not in SHOWN)


def _changed(config: Any, names: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields, or those of `names`, that differ from their defaults."""
    defaults = _defaults(config.__class__)
    changed = {}
    for name in names or defaults:
        value = getattr(config, name)
        if value != defaults[name]:
            # 8 and 8.0 are the same mean recurrence and must give the same hash.
            changed[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return changed


@cache
def _defaults(section: type) -> dict[str, Any]:
    return {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for item in dataclasses.fields(section)
    }


def _flat(fields: Identity, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
