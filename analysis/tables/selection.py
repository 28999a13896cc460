"""The runs that a fit may use, the reason why others are left out, and the groups that share a law."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.format import plural
from analysis.tables.schema import ADDED, RUNS, TableError, conform

# Runs may share a fit only if these columns agree; a study varies seeds, depths and budgets.
VARIANT = (
    "scale",
    "accounting",
    "width",
    "prelude_layers",
    "core_layers",
    "coda_layers",
    "vocabulary_size",
    "injection",
    "dataset",
    "optimizer",
    "adamw_learning_rate",
    "muon_learning_rate",
    "cooldown_fraction",
    "sequence_length",
    "recipe",
)
CELL = (
    *VARIANT,
    "kind",
    "mean_recurrence",
    "backprop_depth",
    "depth_sampling",
    "target_flops",
    "tokens",
    "batch_tokens",
)


DIGEST_VERSION = 4  # of the runs table whose columns all enter its digest


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that no law uses, and the reason."""

    run_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The runs that laws may use, sorted by id, and the runs left out."""

    runs: pd.DataFrame = field(repr=False)
    left_out: tuple[LeftOut, ...]


def select(runs: pd.DataFrame, max_epochs: float) -> Selection:
    """Return the runs that are done, have a finite loss and at most `max_epochs` epochs, sorted by id.

    Raises TableError for an empty table, a run listed twice, no usable run, or usable runs of two data
    digests.
    """
    runs = conform(runs, RUNS).sort_values("run_id", kind="stable").reset_index(drop=True)
    if runs.empty:
        raise TableError("the runs table is empty: launch and collect a sweep first")
    twice = runs["run_id"][runs["run_id"].duplicated()]
    if len(twice):
        raise TableError(f"run {twice.iloc[0]} is listed twice: collect the sweep again")
    reasons = [_reason(row, max_epochs) for row in runs.itertuples()]
    keep = np.array([reason is None for reason in reasons])
    left_out = tuple(
        LeftOut(run_id=str(run_id), reason=reason)
        for run_id, reason in zip(runs["run_id"], reasons, strict=True)
        if reason is not None
    )
    if not keep.any():
        again = "" if (runs["status"] == "done").any() else "; collect the sweep again once runs are done"
        raise TableError(
            f"none of {len(runs)} runs can be used: {left_out[0].run_id} is {left_out[0].reason}{again}"
        )
    used = runs[keep].reset_index(drop=True)
    _refuse_mixed_data(used)
    return Selection(runs=used, left_out=left_out)


def _reason(row: object, max_epochs: float) -> str | None:
    status, loss, epochs = (getattr(row, name) for name in ("status", "val_loss_nats", "epochs"))
    if status != "done":
        return f"not done (status {status})"
    if not (np.isfinite(loss) and loss > 0):
        return f"without a usable loss (val_loss_nats = {loss})"
    if epochs > max_epochs:
        return f"on repeated data ({epochs:.3g} epochs, at most {max_epochs:g})"
    return None


def _refuse_mixed_data(runs: pd.DataFrame) -> None:
    counts = runs["data_digest"].value_counts().sort_index()
    if len(counts) > 1:
        listed = " and ".join(f"{digest} ({plural(count, 'run')})" for digest, count in counts.items())
        raise TableError(
            f"runs of different data cannot share a fit: data_digest {listed}; collect them apart"
        )


def by_columns(runs: pd.DataFrame, columns: Sequence[str]) -> Any:
    """Return the runs grouped by `columns`, sorted; columns with a single value cost no time."""
    varied = [name for name in columns if runs[name].nunique(dropna=False) > 1]
    return runs.groupby(varied or [columns[0]], sort=True, dropna=False)


def groups(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the groups of runs that may share a law: one scale, one accounting, one training recipe.

    A group's label names scale and accounting, and any recipe column that differs between groups of a scale.
    """
    split = [frame for _, frame in by_columns(runs, VARIANT)]
    extra = VARIANT[2:]
    labels = []
    for frame in split:
        scale, accounting = frame["scale"].iloc[0], frame["accounting"].iloc[0]
        siblings = runs[(runs["scale"] == scale) & (runs["accounting"] == accounting)]
        varied = [name for name in extra if siblings[name].nunique(dropna=False) > 1]
        recipe = [f"{name}={frame[name].iloc[0]}" for name in varied if name != "recipe"]
        common = set.intersection(*(set(text.split()) for text in siblings["recipe"].unique()))
        recipe += [text for text in frame["recipe"].iloc[0].split() if text not in common]
        parts = [f"{scale}", f"{accounting} FLOPs", *recipe]
        labels.append(", ".join(parts))
    return list(zip(labels, split, strict=True))


def digest(frame: pd.DataFrame) -> str:
    """Return 12 hex digits of the table's content, independent of the order of its rows and columns.

    A runs table that says nothing in the columns added after version 4 has its digest of that version.
    """
    frame = _without_empty_additions(frame)
    columns = sorted(frame.columns)
    ordered = frame[columns].sort_values(columns, kind="stable")
    return hashlib.sha256(ordered.to_csv(index=False).encode()).hexdigest()[:12]


def _without_empty_additions(frame: pd.DataFrame) -> pd.DataFrame:
    if "schema_version" not in frame:
        return frame
    later = {version: columns for version, columns in ADDED.items() if version > DIGEST_VERSION}
    added = {name: value for columns in later.values() for name, value in columns.items() if name in frame}
    empty = [name for name, value in added.items() if (frame[name].isna() | (frame[name] == value)).all()]
    frame = frame.drop(columns=empty)
    return frame if len(empty) < len(added) else frame.assign(schema_version=DIGEST_VERSION)
