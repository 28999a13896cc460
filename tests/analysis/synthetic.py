"""Runs and depth tables drawn from a known law, with every column of the schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.schema import DEPTHS, RUNS, SCHEMA_VERSION, conform


@dataclass(frozen=True, kw_only=True)
class Truth:
    """L(mu, D) = E + A N(mu)^-a + B D^-b with N non-embedding, and f = fixed + loop mu + backprop mu_bwd."""

    e: float = 2.662
    a_amplitude: float = 0.30 * 522733.307
    a: float = 0.771
    b_amplitude: float = 25420.102
    b: float = 0.525
    n_core: int = 14_158_848 + 1_181_184
    n_other: int = 28_325_376
    n_embedding: int = 25_165_824
    n_value_embedding: int = 75_497_472
    flops_fixed: float = 403.4e6
    flops_per_loop: float = 40.9e6
    flops_per_backprop_loop: float = 81.8e6

    def params(self, mu):
        return self.n_other + self.n_core * np.asarray(mu, float)

    def flops(self, mu, backprop=None):
        mu = np.asarray(mu, float)
        backprop = mu / 2 if backprop is None else backprop
        return self.flops_fixed + self.flops_per_loop * mu + self.flops_per_backprop_loop * backprop

    def loss(self, mu, tokens):
        return (
            self.e
            + self.a_amplitude * self.params(mu) ** -self.a
            + self.b_amplitude * np.asarray(tokens, float) ** -self.b
        )

    def optimum(self, budget):
        """Return the best recurrence on a fine grid, refined by a golden section independent of the library."""
        from scipy.optimize import minimize_scalar

        return float(
            np.exp(
                minimize_scalar(
                    lambda s: float(self.loss(np.exp(s), budget / self.flops(np.exp(s)))),
                    bounds=(np.log(0.1), np.log(1000)),
                    method="bounded",
                    options={"xatol": 1e-12},
                ).x
            )
        )


# The 140M size of the paper under its own accounting: f = 526.2, 567.1, 730.7 ... MFLOP per token (PAPER (c.2)).
PAPER_140M = Truth()


def study(
    truth: Truth = PAPER_140M,
    *,
    budgets: Sequence[float] = (1e18, 2e18, 4e18, 8e18, 16e18),
    recurrences: Sequence[float] = (2, 4, 6, 8, 10, 12),
    noise_nats: float = 0.0,
    seed: int = 0,
    replicates: Sequence[tuple[int, int]] = (),
    scale: str = "140M",
    fixed_penalty_nats: float = 0.02,
    depth_rate_times_recurrence: float = 7.0,
    depth_noise_nats: float = 2e-4,
    fixed: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of a study; `replicates` lists (budget index, recurrence index) trained with 3 seeds."""
    rng = np.random.default_rng(seed)
    rows, depth_rows = [], []
    for k, budget in enumerate(budgets):
        cells = [("looped", float(mu)) for mu in recurrences] + ([("fixed", 1.0)] if fixed else [])
        for j, (kind, mu) in enumerate(cells):
            for run_seed in range(3 if (k, j) in replicates else 1):
                row = _row(truth, scale, kind, mu, budget, run_seed)
                loss = float(truth.loss(mu, row["tokens"])) + (fixed_penalty_nats if kind == "fixed" else 0.0)
                row["val_loss_nats"] = loss + noise_nats * rng.standard_normal()
                row["val_bits_per_byte"] = row["val_loss_nats"] / np.log(2) / 4.65
                rows.append(row)
                if kind == "looped":
                    depth_rows += _depths(row, mu, depth_rate_times_recurrence, depth_noise_nats, rng)
    return conform(pd.DataFrame(rows), RUNS), conform(pd.DataFrame(depth_rows), DEPTHS)


def _row(truth: Truth, scale: str, kind: str, mu: float, budget: float, seed: int) -> dict:
    backprop = float(np.ceil(mu / 2))
    flops = float(truth.flops(mu, backprop))
    tokens = int(budget / flops)
    values = {column.name: {"string": "", "float64": np.nan, "int64": 0}[column.kind] for column in RUNS}
    values.update(
        schema_version=SCHEMA_VERSION, run_id=f"{scale}-{kind}-mu{mu:g}-C{budget:.3g}-s{seed}", sweep="synthetic",
        scale=scale, kind=kind, width=768, prelude_layers=2, core_layers=2, coda_layers=2, vocabulary_size=32768,
        injection="diagonal", n_params_embedding=truth.n_embedding,
        n_params_value_embedding=truth.n_value_embedding, n_params_core=truth.n_core, n_params_other=truth.n_other,
        n_params_total=truth.n_embedding + truth.n_value_embedding + truth.n_core + truth.n_other,
        mean_recurrence=mu, backprop_depth=backprop, depth_sampling="fixed" if kind == "fixed" else "poisson",
        dataset="synthetic", data_digest="0123abcd", unique_tokens=10**12, epochs=tokens / 10**12,
        optimizer="muon_adamw", adamw_learning_rate=8e-3, muon_learning_rate=8e-3, cooldown_fraction=0.5,
        accounting="paper", flops_per_token_fixed=truth.flops_fixed, flops_per_token_per_loop=truth.flops_per_loop,
        flops_per_token_per_backprop_loop=truth.flops_per_backprop_loop, target_flops=budget,
        nominal_flops=tokens * flops, expected_flops=tokens * flops, executed_flops=tokens * flops, tokens=tokens,
        steps=tokens // 524288, batch_tokens=524288, sequence_length=2048, seed=seed, val_loss_se_nats=0.003,
        val_unigram_nats=7.2, wall_s=3600.0, tokens_per_s=1e5, device="synthetic", attempts=1, status="done",
        code_version="0",
    )  # fmt: skip
    return values


def _depths(row: dict, mu: float, rate: float, noise: float, rng: np.random.Generator) -> list[dict]:
    depths = [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24]
    z = rate / mu
    floor = row["val_loss_nats"] - 0.8 * np.exp(-z * mu)
    return [
        {"run_id": row["run_id"], "depth": t, "val_loss_se_nats": 0.003,
         "val_loss_nats": floor + 0.8 * np.exp(-z * t) + noise * rng.standard_normal()}
        for t in depths
    ]  # fmt: skip
