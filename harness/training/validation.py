"""Validation loss and bits per byte of one model at every test-time depth, in one pass through the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.data.dataset import Dataset
from harness.data.loader import IGNORED, validation_rows
from harness.distributed.process_group import ALONE, Ranks
from harness.run.config import EvaluationConfig, TrainingConfig
from harness.run.record import Evaluation
from model.config import ModelConfig
from model.depth import counter_seed
from model.kernels import autocast, eager_fallback
from model.transformer import LoopedTransformer


@dataclass(frozen=True, kw_only=True)
class ScoredBlocks:
    """Held-out sequences [blocks, L], with -100 for labels that are not scored."""

    tokens: np.ndarray
    labels: np.ndarray
    documents: np.ndarray | None  # numbers of the documents, where attention stays within them
    text_bytes: int

    @property
    def scored(self) -> np.ndarray:
        """Return the number of scored tokens of each block."""
        return (self.labels != IGNORED).sum(axis=1)

    def part(self, rows: slice, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return tokens, labels and documents of some blocks on a device."""
        tokens, labels = (torch.from_numpy(values[rows]).to(device) for values in (self.tokens, self.labels))
        if self.documents is None:
            return tokens, labels, None
        return tokens, labels, torch.from_numpy(self.documents[rows]).to(device)

    def seeds(self, rows: slice) -> list[int]:
        """Return the seeds of h_0, functions of the blocks' positions."""
        return [counter_seed("evaluation", index) for index in range(rows.start, rows.stop)]


def scored_blocks(
    config: ModelConfig, dataset: Dataset, blocks: int, training: TrainingConfig
) -> ScoredBlocks:
    """Return the held-out sequences of a model, packed as in its training; special tokens are not scored."""
    batch = validation_rows(
        dataset, packing=training.packing, sequence_length=config.sequence_length, blocks=blocks
    )
    label_bytes = np.where(batch.labels == IGNORED, 0, dataset.token_bytes[batch.labels])
    return ScoredBlocks(
        tokens=batch.tokens,
        labels=np.where(label_bytes > 0, batch.labels, IGNORED),
        documents=batch.documents(dataset.bos) if training.document_mask else None,
        text_bytes=int(label_bytes.sum()),
    )


def evaluate(
    model: LoopedTransformer,
    config: ModelConfig,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    *,
    training: TrainingConfig | None = None,
    ranks: Ranks = ALONE,
    progress: Callable[[float], None] = lambda done: None,
) -> Evaluation:
    """Return the validation loss of `model` at T = 1..max_depth, on the same blocks for every run of a study.

    Parameters
    ----------
    training : its packing, document mask and precision apply here too; by default plain blocks in float32.
    ranks : the processes that share the batches, each with all the weights; every one must call this.
    progress : called with the fraction that is evaluated.

    Notes
    -----
    Special tokens are read but not scored. h_0 is seeded by the block's position, so two evaluations of the
    same weights agree. The standard error is over blocks.
    """
    training = training or TrainingConfig()
    held_out = scored_blocks(config, dataset, evaluation.blocks, training)
    deepest = max(evaluation.max_depth, math.ceil(config.mean_recurrence)) if config.kind == "looped" else 1
    device = next(model.parameters()).device
    starts = range(0, evaluation.blocks, evaluation.batch_blocks)
    own: dict[int, torch.Tensor] = {}  # of this process, by the first block of the batch
    for start in starts[ranks.rank :: ranks.world]:
        rows = slice(start, min(start + evaluation.batch_blocks, evaluation.blocks))
        tokens, labels, documents = held_out.part(rows, device)
        with autocast(device, training.precision), eager_fallback():
            losses = model.depth_losses(tokens, labels, deepest, held_out.seeds(rows), documents)
        own[start] = losses.cpu()
        progress(rows.stop / evaluation.blocks)
    losses_of = {start: losses for part in ranks.all_gather(own) for start, losses in part.items()}
    sums = torch.cat([losses_of[start] for start in starts], dim=1).double().numpy()  # [depth, block], nats
    per_block = sums / held_out.scored
    total = sums.sum(axis=1)
    return Evaluation(
        loss_nats=(total / held_out.scored.sum()).tolist(),
        loss_se_nats=(per_block.std(axis=1, ddof=1) / math.sqrt(evaluation.blocks)).tolist(),
        bits_per_byte=(total / held_out.text_bytes / math.log(2)).tolist(),
        tokens=int(held_out.scored.sum()),
    )
