"""Validation loss and bits per byte of one model at every test-time depth, in one pass through the loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from harness.data.dataset import Dataset
from harness.data.loader import IGNORED, validation_rows
from harness.distributed.process_group import ALONE, Ranks
from harness.run.config import EvaluationConfig, TrainingConfig
from harness.run.record import Evaluation
from model.config import ModelConfig
from model.depth import counter_seed
from model.kernels import autocast, eager_fallback
from model.transformer import LoopedTransformer


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
    batch = validation_rows(
        dataset, packing=training.packing, sequence_length=config.sequence_length, blocks=evaluation.blocks
    )
    label_bytes = np.where(batch.labels == IGNORED, 0, dataset.token_bytes[batch.labels])
    labels = np.where(label_bytes > 0, batch.labels, IGNORED)
    scored = (labels != IGNORED).sum(axis=1)
    text_bytes = int(label_bytes.sum())
    documents = torch.from_numpy(batch.documents(dataset.bos)) if training.document_mask else None
    deepest = max(evaluation.max_depth, math.ceil(config.mean_recurrence)) if config.kind == "looped" else 1
    device = next(model.parameters()).device
    starts = range(0, evaluation.blocks, evaluation.batch_blocks)
    own: dict[int, torch.Tensor] = {}  # of this process, by the first block of the batch
    for start in starts[ranks.rank :: ranks.world]:
        rows = slice(start, min(start + evaluation.batch_blocks, evaluation.blocks))
        with autocast(device, training.precision), eager_fallback():
            losses = model.depth_losses(
                torch.from_numpy(batch.tokens[rows]).to(device),
                torch.from_numpy(labels[rows]).to(device),
                deepest,
                [counter_seed("evaluation", index) for index in range(rows.start, rows.stop)],
                None if documents is None else documents[rows].to(device),
            )
        own[start] = losses.cpu()
        progress(rows.stop / evaluation.blocks)
    losses_of = {start: losses for part in ranks.all_gather(own) for start, losses in part.items()}
    sums = torch.cat([losses_of[start] for start in starts], dim=1).double().numpy()  # [depth, block], nats
    per_block = sums / scored
    total = sums.sum(axis=1)
    return Evaluation(
        loss_nats=(total / scored.sum()).tolist(),
        loss_se_nats=(per_block.std(axis=1, ddof=1) / math.sqrt(evaluation.blocks)).tolist(),
        bits_per_byte=(total / text_bytes / math.log(2)).tolist(),
        tokens=int(scored.sum()),
    )
