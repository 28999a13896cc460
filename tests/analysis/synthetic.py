"""Runs and depth tables drawn from a known law, with every column of the schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from analysis.tables.schema import DEPTHS, RUNS, SCHEMA_VERSION, conform

DEPTHS_EVALUATED = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)
EMPTY = {"string": "", "float64": np.nan, "int64": 0}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """L(mu, D) = E + A N(mu)^-a + B D^-b with N non-embedding, and f = fixed + loop mu + backprop mu_bwd.

    The defaults are the paper's 140M size under its own accounting with A times 0.30, which brings the optima
    of its budgets to 2.4, 3.6, 5.3, 7.4, 10.3 and 18.9.
    """

    e: float = 2.662
    a_amplitude: float = 0.30 * 522733.307
    a: float = 0.771
    b_amplitude: float = 25420.102
    b: float = 0.525
    n_core: int = 14_158_848
    n_other: int = 29_507_328
    n_embedding: int = 25_165_824
    n_value_embedding: int = 75_497_472
    flops_fixed: float = 403.4e6
    flops_per_loop: float = 40.9e6
    flops_per_backprop_loop: float = 81.8e6

    def params(self, mu):
        return self.n_other + self.n_core * np.asarray(mu, float)

    def flops(self, mu, backprop=None):
        """FLOPs per token, on the continuous curve f(mu, mu / 2) unless `backprop` is given."""
        mu = np.asarray(mu, float)
        backprop = mu / 2 if backprop is None else backprop
        return self.flops_fixed + self.flops_per_loop * mu + self.flops_per_backprop_loop * backprop

    def loss(self, mu, tokens):
        size = self.a_amplitude * self.params(mu) ** -self.a
        return self.e + size + self.b_amplitude * np.asarray(tokens, float) ** -self.b

    def optimum(self, budget):
        """The best recurrence at one budget, by a bounded scalar search over log mu."""
        found = minimize_scalar(
            lambda s: float(self.loss(np.exp(s), budget / self.flops(np.exp(s)))),
            bounds=(np.log(0.1), np.log(1000)),
            method="bounded",
            options={"xatol": 1e-12},
        )
        return float(np.exp(found.x))


PAPER_GRID = (1e18, 2e18, 4e18, 8e18, 16e18, 64e18)
INSIDE = PAPER_GRID[:5]  # the budgets whose optimum lies within mu = 2 .. 12


def study(
    truth: Truth | None = None,
    *,
    budgets: Sequence[float] = INSIDE,
    recurrences: Sequence[float] = (2, 4, 6, 8, 10, 12),
    noise_nats: float = 0.0,
    seed: int = 0,
    replicates: Sequence[tuple[int, int]] = (),
    scale: str = "140M",
    fixed_penalty_nats: float = 0.02,
    rate_times_recurrence: float = 7.0,
    depth_noise_nats: float = 2e-4,
    fixed: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the two tables; `replicates` lists the (budget, recurrence) places trained with three seeds."""
    truth = truth or Truth()
    rng = np.random.default_rng(seed)
    rows, depth_rows = [], []
    for k, budget in enumerate(budgets):
        cells = [("looped", float(mu)) for mu in recurrences] + ([("fixed", 1.0)] if fixed else [])
        for j, (kind, mu) in enumerate(cells):
            for run_seed in range(3 if (k, j) in replicates else 1):
                row = run(truth, scale, kind, mu, budget, run_seed)
                penalty = fixed_penalty_nats if kind == "fixed" else 0.0
                loss = float(truth.loss(mu, row["tokens"])) + penalty + noise_nats * rng.standard_normal()
                row |= {"val_loss_nats": loss, "val_bits_per_byte": loss / np.log(2) / 4.65}
                rows.append(row)
                if kind == "looped":
                    depth_rows += depth_curve(row, rate_times_recurrence / mu, depth_noise_nats, rng)
    return conform(pd.DataFrame(rows), RUNS), conform(pd.DataFrame(depth_rows), DEPTHS)


def run(truth: Truth, scale: str, kind: str, mu: float, budget: float, seed: int) -> dict:
    """One row of the runs table, its loss still open."""
    backprop = float(np.ceil(mu / 2))
    flops = float(truth.flops(mu, backprop))
    tokens = int(budget / flops)
    sizes = (truth.n_embedding, truth.n_value_embedding, truth.n_core, truth.n_other)
    return {column.name: EMPTY[column.kind] for column in RUNS} | {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{scale}-{kind}-mu{mu:g}-C{budget:.3g}-s{seed}",
        "sweep": "synthetic",
        "scale": scale,
        "kind": kind,
        "width": 768,
        "prelude_layers": 2,
        "core_layers": 2,
        "coda_layers": 2,
        "vocabulary_size": 32768,
        "injection": "diagonal",
        "n_params_total": sum(sizes),
        "n_params_embedding": truth.n_embedding,
        "n_params_value_embedding": truth.n_value_embedding,
        "n_params_core": truth.n_core,
        "n_params_other": truth.n_other,
        "mean_recurrence": mu,
        "backprop_depth": backprop,
        "depth_sampling": "fixed" if kind == "fixed" else "poisson",
        "dataset": "synthetic",
        "data_digest": "0123abcd",
        "unique_tokens": 10**12,
        "epochs": tokens / 10**12,
        "optimizer": "muon_adamw",
        "adamw_learning_rate": 8e-3,
        "muon_learning_rate": 8e-3,
        "cooldown_fraction": 0.5,
        "recipe": "",
        "accounting": "paper",
        "flops_per_token_fixed": truth.flops_fixed,
        "flops_per_token_per_loop": truth.flops_per_loop,
        "flops_per_token_per_backprop_loop": truth.flops_per_backprop_loop,
        "target_flops": budget,
        "nominal_flops": tokens * flops,
        "expected_flops": tokens * flops,
        "executed_flops": tokens * flops,
        "tokens": tokens,
        "steps": tokens // 524288,
        "batch_tokens": 524288,
        "sequence_length": 2048,
        "seed": seed,
        "val_loss_se_nats": 0.003,
        "val_unigram_nats": 7.2,
        "wall_s": 3600.0,
        "tokens_per_s": 1e5,
        "device": "synthetic",
        "attempts": 1,
        "micro_batch_changed": 0,
        "status": "done",
        "code_version": "0",
    }


def depth_curve(row: dict, rate: float, noise: float, rng: np.random.Generator) -> list[dict]:
    """Depth rows L_inf + 0.8 exp(-rate T) that pass through the run's loss at T = mean recurrence."""
    depths = np.array(DEPTHS_EVALUATED)
    gap = 0.8 * (np.exp(-rate * depths) - np.exp(-rate * row["mean_recurrence"]))
    losses = row["val_loss_nats"] + gap + noise * rng.standard_normal(len(depths))
    return [
        {"run_id": row["run_id"], "depth": int(t), "val_loss_nats": loss, "val_loss_se_nats": 0.003}
        for t, loss in zip(depths, losses, strict=True)
    ]
