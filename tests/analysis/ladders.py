"""Runs of a looped model beside a ladder of plain transformers, drawn from a known law of size and tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from analysis.tables.schema import RUNS, conform
from tests.analysis.synthetic import Truth, run

VOCABULARY, LAYERS, CONTEXT = 32768, 6, 2048
WIDTHS = (512, 768, 1024, 1280, 1536, 2048)


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """L = E + A n^-alpha + B D^-beta over transformers of six layers, n without embedding and value tables.

    A looped model of width 768 has the loss of such a transformer with `worth` times its own n.
    """

    e: float = 1.9
    a: float = 120.0
    alpha: float = 0.30
    b: float = 2000.0
    beta: float = 0.36
    worth: float = 2.0
    looped_flops: float = 1.7  # of the looped model over those of the transformer of its width

    def parts(self, width: float) -> dict[str, float]:
        """Parameters by part: PAPER's block of 12 d^2 + 2 d, three value tables with their gates."""
        heads = width / 128
        return {
            "embedding": VOCABULARY * width,
            "value_embedding": 3 * VOCABULARY * width,
            "other": LAYERS * (12 * width**2 + 2 * width) + width + 3 * 32 * heads,
        }

    def size(self, width: float, counting: str = "non_embedding") -> float:
        parts = self.parts(width)
        value = parts["value_embedding"] * (counting != "non_embedding")
        return parts["other"] + value + parts["embedding"] * (counting == "all")

    def flops(self, width: float) -> float:
        """FLOPs per token by the paper's rule: the unembedding in, 4 d L of attention a layer."""
        matrices = self.size(width) + VOCABULARY * width
        return 6 * matrices + 3 * LAYERS * 4 * width * CONTEXT

    def loss(self, width: float, tokens: float) -> float:
        return self.e + self.a * self.size(width) ** -self.alpha + self.b * tokens**-self.beta

    def looped_loss(self, tokens: float) -> float:
        return self.e + self.a * (self.worth * self.size(768)) ** -self.alpha + self.b * tokens**-self.beta

    def equal_width(self, tokens: float, flops: float | None = None) -> float:
        """The least width of a transformer of the looped model's loss, at its tokens or at its FLOPs."""

        def gap(width: float) -> float:
            own = tokens if flops is None else flops / self.flops(width)
            return self.loss(width, own) - self.looped_loss(tokens)

        widths = np.arange(200.0, 4000.0, 10.0)
        first = int(np.argmax([gap(width) <= 0 for width in widths]))
        return float(brentq(gap, widths[first - 1], widths[first]))

    def k(
        self, counting: str = "non_embedding", tokens: float = 1.12e10, flops: float | None = None
    ) -> float:
        return self.size(self.equal_width(tokens, flops), counting) / self.size(768, counting)


def ladder_runs(
    truth: Ladder | None = None,
    *,
    noise_nats: float = 0.0,
    seed: int = 0,
    tokens: float = 1.12e10,
    widths: tuple[int, ...] = WIDTHS,
    seeds: tuple[int, ...] = (0,),
    looped_seeds: tuple[int, ...] = (0, 1, 2),
    equal_flops: bool = True,
    scores: bool = False,
) -> pd.DataFrame:
    """The runs table: the looped model, and the ladder at its tokens and, if asked for, at its FLOPs."""
    truth = truth or Ladder()
    rng = np.random.default_rng(seed)
    flops = truth.looped_flops * truth.flops(768) * tokens
    cells = [("looped", 768, tokens, truth.looped_loss(tokens), one) for one in looped_seeds]
    for width in widths:
        for one in seeds:
            for count in (tokens, *((flops / truth.flops(width),) if equal_flops else ())):
                cells.append(("transformer", width, count, truth.loss(width, count), one))
    rows = []
    for kind, width, count, loss, one in cells:
        row = run(Truth(), "140M", kind, 8.0 if kind == "looped" else 1.0, 1e18, one)
        parts = truth.parts(width)
        per_token = truth.flops(width) * (truth.looped_flops if kind == "looped" else 1.0)
        noisy = loss + noise_nats * rng.standard_normal()
        row |= {
            "scale": "looped_140m" if kind == "looped" else f"transformer_{LAYERS}x{width}",
            "run_id": f"{kind}-{width}-{count:.6g}-s{one}",
            "width": width,
            "prelude_layers": 2 if kind == "looped" else LAYERS,
            "core_layers": 2 if kind == "looped" else 0,
            "coda_layers": 2 if kind == "looped" else 0,
            "n_params_embedding": int(parts["embedding"]),
            "n_params_value_embedding": int(parts["value_embedding"]),
            "n_params_core": 0,
            "n_params_other": int(parts["other"]),
            "n_params_total": sum(int(value) for value in parts.values()),
            "recipe": f"model.heads={width // 128}",
            "flops_per_token_fixed": per_token,
            "tokens": int(count),
            "epochs": 0.1,
            "nominal_flops": per_token * int(count),
            "target_flops": per_token * int(count),
            "val_loss_nats": noisy,
            "val_bits_per_byte": noisy / np.log(2) / 4.65,
        }
        if scores:
            row |= {"core": 0.6 - 0.15 * noisy, "core_tasks": 22}
        rows.append(row)
    return conform(pd.DataFrame(rows), RUNS)
