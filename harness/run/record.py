"""The record of a run: its row of the runs table and its rows of the depth table."""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.run.config import RunConfig
from harness.run.identity import recipe
from model.depth import expected_depths
from model.flops import flops_per_token, parameter_counts

SCHEMA_VERSION = 5
VERSION = "0.1.0"
# Speed and memory of a run: differ between attempts and machines.
MEASURED = ("wall_s", "device_s", "tokens_per_s", "mfu", "data_wait_share", "peak_memory_bytes")
RESULTS = (
    "executed_flops",
    "val_loss_nats",
    "val_loss_se_nats",
    "val_bits_per_byte",
    "val_unigram_nats",
    "core",
    "core_tasks",
    "core_extended",
    "core_extended_tasks",
    "skipped_steps",
    "loss_spikes",
    *MEASURED,
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses over the fixed validation blocks; index T - 1 of each list is for test-time depth T."""

    loss_nats: list[float]
    loss_se_nats: list[float]
    bits_per_byte: list[float]
    tokens: int

    def at(self, depth: int) -> int:
        """Return the index of `depth`, at most that of the deepest one."""
        return min(depth, len(self.loss_nats)) - 1

    def _repr_html_(self) -> str:
        """Return the losses as a table for a notebook, one row per depth."""
        rows = enumerate(zip(self.loss_nats, self.loss_se_nats, self.bits_per_byte, strict=True), start=1)
        lines = [f"<tr><td>{depth}" + "".join(f"<td>{value:.4f}" for value in row) for depth, row in rows]
        return "\n".join(["<table><tr><th>T<th>loss (nats)<th>±<th>bits/byte", *lines, "</table>"])


def planned_columns(run: RunConfig) -> dict[str, Any]:
    """Return the columns that are known before a solved `run` starts."""
    assert run.steps is not None, "solve the run first"
    model, optimizer = run.model, run.optimizer
    counts = parameter_counts(model)
    flops = flops_per_token(model, run.accounting)
    tokens = run.steps * run.batch_tokens
    nominal = tokens * flops.at(model.mean_recurrence, model.resolved_backprop_depth)
    return {
        "scale": run.scale,
        "kind": model.table_kind,
        "width": model.width,
        "prelude_layers": model.prelude_layers,
        "core_layers": model.core_layers,
        "coda_layers": model.coda_layers,
        "vocabulary_size": model.vocabulary_size,
        "injection": model.injection,
        "n_params_total": counts.total,
        "n_params_embedding": counts.embedding,
        "n_params_value_embedding": counts.value_embedding,
        "n_params_core": counts.core,
        "n_params_other": counts.other,
        "mean_recurrence": model.mean_recurrence,
        "backprop_depth": model.resolved_backprop_depth,
        "depth_sampling": model.depth_sampling,
        "dataset": run.data.name,
        "optimizer": optimizer.name,
        "adamw_learning_rate": optimizer.adamw_learning_rate,
        "muon_learning_rate": optimizer.muon_learning_rate if optimizer.name == "muon_adamw" else None,
        "lr_scaling": optimizer.lr_scaling,
        "cooldown_fraction": run.schedule.cooldown_fraction,
        "recipe": recipe(run),
        "trunk_id": "",
        "trunk_steps": 0,
        "trunk_flops": 0.0,
        "trunk_share_flops": 0.0,
        "accounting": run.accounting,
        "flops_per_token_fixed": flops.fixed,
        "flops_per_token_per_loop": flops.per_loop,
        "flops_per_token_per_backprop_loop": flops.per_backprop_loop,
        "target_flops": run.budget_flops or nominal,
        "nominal_flops": nominal,
        "expected_flops": tokens * flops.at(*expected_depths(model)),
        "tokens": tokens,
        "tokens_padded": 0,
        "steps": run.steps,
        "batch_tokens": run.batch_tokens,
        "sequence_length": model.sequence_length,
        "seed": run.seed,
    }


def planned_record(
    run: RunConfig, *, run_id: str, sweep: str, data_digest: str, unique_tokens: int
) -> dict[str, Any]:
    """Return the row of the runs table before the run has started, with None for unknown results."""
    columns = planned_columns(run)
    return columns | {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "sweep": sweep,
        "data_digest": data_digest,
        "unique_tokens": unique_tokens,
        "epochs": columns["tokens"] / unique_tokens,
        **dict.fromkeys(RESULTS),
        "device": "",
        "kernels": "",
        "devices": 1,
        "attempts": 0,
        "micro_batch_changed": 0,
        "status": "planned",
        "code_version": "",
    }


def finished_record(
    planned: dict[str, Any],
    evaluation: Evaluation,
    counters: dict[str, float],
    *,
    own_depth: int,
    **more: Any,
) -> dict[str, Any]:
    """Return the row `planned` with the results filled in.

    Parameters
    ----------
    counters : of `harness.training.session`.
    own_depth : test-time depth of the row's losses.

    Notes
    -----
    A value that is not finite is stored as None, NaN in the table.
    """
    own = evaluation.at(own_depth)
    train_s = counters["train_s"]
    return planned | {
        "executed_flops": counters["executed_flops"],
        "val_loss_nats": _finite(evaluation.loss_nats[own]),
        "val_loss_se_nats": _finite(evaluation.loss_se_nats[own]),
        "val_bits_per_byte": _finite(evaluation.bits_per_byte[own]),
        "wall_s": counters["wall_s"],
        "device_s": counters["device_s"],
        "tokens_per_s": planned["tokens"] / train_s,
        "mfu": counters["executed_flops"] / (train_s * counters["peak_flops_per_s"]),
        "data_wait_share": counters["data_wait_s"] / train_s,
        "peak_memory_bytes": counters["peak_memory_bytes"],
        "status": "done",
        "code_version": code_version(),
        **more,
    }


def depth_rows(run_id: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the run's rows of the depth table, from T = 1 on."""
    pairs = zip(evaluation.loss_nats, evaluation.loss_se_nats, strict=True)
    return [
        {"run_id": run_id, "depth": depth, "val_loss_nats": _finite(loss), "val_loss_se_nats": _finite(error)}
        for depth, (loss, error) in enumerate(pairs, start=1)
    ]


@cache
def code_version() -> str:
    """Return the version and, in a checkout, its commit, with `-dirty` if files differ from it.

    A job runs from a snapshot without git; LOOPSCALE_CODE_VERSION is the version that it was taken from.
    """
    if version := os.environ.get("LOOPSCALE_CODE_VERSION"):
        return version
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return VERSION
    return f"{VERSION}+{done.stdout.strip()}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
