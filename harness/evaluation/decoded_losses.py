"""The validation loss of a model that decodes token by token, under budgets of keys and exit rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.data.loader import IGNORED
from harness.evaluation.depth_curve import open_with_data
from harness.training.validation import ScoredBlocks, scored_blocks
from model.decoding import Decoding, kv_bytes_per_token
from model.generate import decoded_losses
from model.transformer import LoopedTransformer


@dataclass(frozen=True, kw_only=True)
class DecodedLoss:
    """The loss under one way of decoding, and what it costs.

    `excess_nats` is the loss minus that of all loops with all keys and values on the same blocks; errors are
    over blocks. `loops_share[t - 1]` is the share of tokens that spend t loops.
    """

    decoding: Decoding
    kv_bytes_per_token: int
    loss_nats: float
    loss_se_nats: float
    excess_nats: float
    excess_se_nats: float
    bits_per_byte: float
    mean_loops: float
    loops_share: list[float]


def evaluate_decodings(
    path: Path,
    cache: Path,
    decodings: Sequence[Decoding],
    *,
    data: Path | None = None,
    blocks: int | None = None,
) -> list[DecodedLoss]:
    """Return the losses of the model at `path` under each way of decoding, in float32; read-only.

    Parameters
    ----------
    decodings : excess_nats is over all loops of the first one's depth.
    data, blocks : as in `harness.evaluation.depth_curve.evaluate_folder`.
    """
    run, model, dataset = open_with_data(path, cache, data)
    held_out = scored_blocks(model.config, dataset, blocks or run.evaluation.blocks, run.training)
    rows, full = run.evaluation.batch_blocks, Decoding(depth=decodings[0].depth)
    measured = {decoding: _decode(model, held_out, decoding, rows) for decoding in {full, *decodings}}
    return [
        _summary(model, held_out, decoding, *measured[decoding], measured[decoding][0] - measured[full][0])
        for decoding in decodings
    ]


def _decode(
    model: LoopedTransformer, held_out: ScoredBlocks, decoding: Decoding, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed nats of each block [blocks] and how many scored tokens spent each number of loops."""
    device, sums = model.embedding.device, []
    counts = np.zeros(decoding.depth, dtype=np.int64)
    for start in range(0, len(held_out.tokens), rows):
        part = slice(start, min(start + rows, len(held_out.tokens)))
        tokens, labels, documents = held_out.part(part, device)
        found = decoded_losses(model, tokens, labels, decoding, held_out.seeds(part), documents)
        sums.append(found.nats.double().sum(dim=1).cpu().numpy())
        spent = found.loops[labels != IGNORED] - 1
        counts += torch.bincount(spent, minlength=decoding.depth).cpu().numpy()
    return np.concatenate(sums), counts


def _summary(
    model: LoopedTransformer,
    held_out: ScoredBlocks,
    decoding: Decoding,
    nats: np.ndarray,
    loops: np.ndarray,
    excess: np.ndarray,
) -> DecodedLoss:
    tokens, blocks = held_out.scored, len(nats)
    share = loops / loops.sum()
    loss_se, excess_se = (
        (sums / tokens).std(ddof=1) / math.sqrt(blocks) if blocks > 1 else math.nan for sums in (nats, excess)
    )
    return DecodedLoss(
        decoding=decoding,
        kv_bytes_per_token=kv_bytes_per_token(
            model.config, decoding, element_bytes=model.embedding.element_size()
        ),
        loss_nats=float(nats.sum() / tokens.sum()),
        loss_se_nats=float(loss_se),
        excess_nats=float(excess.sum() / tokens.sum()),
        excess_se_nats=float(excess_se),
        bits_per_byte=float(nats.sum() / held_out.text_bytes / math.log(2)),
        mean_loops=float(share @ np.arange(1, len(share) + 1)),
        loops_share=share.tolist(),
    )
