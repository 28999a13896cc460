"""Log-probabilities of many continuations of one prefix, at several depths, in one pass.

Prefix and branches run side by side through each layer of each loop: the prefix's keys and values serve all
branches and are freed after the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.injection import first_states
from model.kernels import Context
from model.layers import Block
from model.transformer import LoopedTransformer


@dataclass(frozen=True, kw_only=True)
class BranchBatch:
    """Prefixes, padded to P tokens, each followed by its branches, one after the other, padded to S.

    tokens and positions are [B, P + S]. mask [B, 1, S, P + S] is 0 where a branch's token attends to a token
    and -inf elsewhere; a prefix's tokens attend to themselves and all before them. Token `columns[i]` of row
    `rows[i]` predicts `targets[i]`, all [N]; columns count from the first branch's first token.
    """

    tokens: Tensor
    positions: Tensor
    prefix: int
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> BranchBatch:
        """Return a copy on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "prefix"}
        return BranchBatch(prefix=self.prefix, **moved)


def state_table(model: LoopedTransformer, seed: int) -> Tensor:
    """Draw one h_0 [L, d] for all positions of the context, so that continuations can share a prefix.

    Drawn on the CPU: every device starts from the same states.
    """
    like = torch.empty(1, model.config.sequence_length, model.config.width)
    return first_states(model.config.state_init, [seed], like)[0].to(model.embedding.device)


@torch.no_grad()
def branch_scores(
    model: LoopedTransformer, batch: BranchBatch, depths: Sequence[int], states: Tensor
) -> tuple[Tensor, Tensor]:
    """Return -log p of each target, float32 [depths, N], and whether it is the likeliest token, bool.

    depths ascend. states [L, d] holds h_0 by position (`state_table`). A plain transformer has one result
    for all depths.
    """
    config = model.config
    layers = _Pass(model, batch)
    x, context = model._embed(batch.tokens)
    if config.kind == "transformer":
        scores = [layers.score(layers.run(model.prelude, 0, x, context, last=True))] * len(depths)
    else:
        x = layers.run(model.prelude, 0, x, context)
        drive, carry = model.injection.prepare(model.prelude_norm(x))
        state, scores = states[batch.positions], []
        for depth in range(1, depths[-1] + 1):
            state = model.injection.mix(state, drive, carry)
            state = layers.run(model.core, model.first_layer, state, context)
            if depth in depths:
                stream = model.readout(state).to(state.dtype)
                stream = layers.run(
                    model.coda, model.first_layer + len(model.core), stream, context, last=True
                )
                scores.append(layers.score(stream))
    nats, hits = zip(*scores, strict=True)
    return torch.stack(nats), torch.stack(hits)


class _Pass:
    """What all layers of one pass share: rotary angles of the positions, prefix length and mask."""

    def __init__(self, model: LoopedTransformer, batch: BranchBatch) -> None:
        self._model, self._batch = model, batch
        self._rope = model.rope[batch.positions]  # [B, P + S, 1, D / 2, 2]

    def run(
        self, blocks: nn.ModuleList, first_layer: int, x: Tensor, context: Context, *, last: bool = False
    ) -> Tensor:
        """Run blocks on the stream; if they are the `last` of the model, return the branches alone."""
        for layer, block in enumerate(blocks, start=first_layer):
            x = self._block(block, x, context.value_rows.get(layer), last and block is blocks[-1])
        return x

    def _block(self, block: Block, x: Tensor, rows: Tensor | None, last: bool) -> Tensor:
        split, grouped = self._batch.prefix, block.attn.grouped
        query, key, value = block.attn.project(block.norm_1(x), self._rope, rows)
        attended = [
            F.scaled_dot_product_attention(
                query[:, :, split:],
                key,
                value,
                attn_mask=self._batch.mask.to(query.dtype),
                enable_gqa=grouped,
            )
        ]
        if last:
            x = x[:, split:]
        elif split:
            q, k, v = (part[:, :, :split] for part in (query, key, value))
            attended.insert(0, block.kernels.attention(q, k, v))
        x = x + block.attn.merge(torch.cat(attended, dim=2))
        return x + block.mlp(block.norm_2(x))

    def score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets' scores; x is the stream of the branches, perhaps after the prefix."""
        branches = x[:, x.shape[1] - self._batch.mask.shape[2] :]
        hidden = self._model.final_norm(branches[self._batch.rows, self._batch.columns])
        return self._model.kernels.token_scores(hidden, self._model.embedding, self._batch.targets)
