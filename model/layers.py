"""The transformer block: pre-norm causal attention with gated value embeddings, and the MLP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.kernels import AUTO, BlockWeights, Kernels, half_squared_relu, rms_norm, rotated_norm


def rotary_table(length: int, head_dim: int, theta: float) -> Tensor:
    """Return cos and sin of the rotary angles, float32 [length, 1, head_dim / 2, 2]."""
    if torch.empty(0).is_meta:  # where torch.arange imports torch's compiler, which takes a second
        return torch.empty(length, 1, head_dim // 2, 2, dtype=torch.float32)
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None]


def document_mask(documents: Tensor) -> Tensor:
    """Return which token attends to which, bool [B, 1, L, L]: to itself and those before it in its document.

    documents [B, L] numbers the documents of each sequence. Rotary positions are relative, so a document
    inside a sequence is computed as if it stood alone.
    """
    same = documents.unsqueeze(-1) == documents.unsqueeze(-2)
    return same.tril().unsqueeze(1)


class RMSNorm(nn.Module):
    """Scale each token to unit root mean square, then by a learned weight per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Module):
    """Multiply by a weight [out, in], without bias; its values are set by `model.transformer.initialise`."""

    cast: Tensor | None = None  # the weight as autocast would cast it, see `cast_once`

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension."""
        return F.linear(x, self.weight if self.cast is None else self.cast)


class Attention(nn.Module):
    """Attend causally, queries and keys normed after their rotation, values shifted by gated table rows."""

    cast: Tensor | None = None  # the joint matrix of queries, keys and values, see `cast_once`

    def __init__(self, config: ModelConfig, gated: bool, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.heads, config.resolved_kv_heads
        self.grouped = self.heads != self.kv_heads
        self.gate_channels = config.gate_channels
        self.c_q = Linear(config.width, config.width)
        self.c_k = Linear(config.width, config.kv_width)
        self.c_v = Linear(config.width, config.kv_width)
        self.c_proj = Linear(config.width, config.width)
        self.ve_gate = Linear(config.gate_channels, config.resolved_kv_heads) if gated else None

    def forward(
        self, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Map normed tokens x [B, L, d]; value_rows [B, L, kv d] are the table's rows of the same tokens.

        mask [B, 1, L, L] says which token attends to which; without it, to itself and all before it.
        """
        q, k, v = self.project(x, rope, value_rows)
        if mask is None:
            return self.merge(self.kernels.attention(q, k, v))
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.grouped))

    def project(self, x: Tensor, rope: Tensor, value_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, L, D], keys and values [B, KV, L, D]."""
        weights = self.joint_weight() if self.cast is None else self.cast
        projected = F.linear(x, weights).unflatten(-1, (-1, self.head_dim))  # [B, L, H + 2 KV, D]
        qk, v = projected.split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
        if value_rows is not None and self.ve_gate is not None:
            gate = 2 * torch.sigmoid(self.ve_gate(x[..., : self.gate_channels]))  # [B, L, KV]
            rows = value_rows.to(v.dtype).unflatten(-1, (-1, self.head_dim))
            v = torch.addcmul(v, gate.unsqueeze(-1), rows)
        q, k = rotated_norm(qk, rope).split([self.heads, self.kv_heads], dim=-2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def joint_weight(self) -> Tensor:
        """Return the matrix of queries, keys and values [H D + 2 KV D, d]."""
        return torch.cat([self.c_q.weight, self.c_k.weight, self.c_v.weight])

    def merge(self, attended: Tensor) -> Tensor:
        """Map the heads' results [B, H, L, D] back to the stream."""
        return self.c_proj(attended.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Map each token through `0.5 relu(x)²` (relu2) or `silu(gate) * x` (swiglu)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        hidden = config.resolved_mlp_width
        self.fc = Linear(config.width, 2 * hidden if self.gated else hidden)
        self.proj = Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension."""
        hidden = self.fc(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return self.proj(F.silu(gate) * value)
        return self.proj(half_squared_relu(hidden))


class Block(nn.Module):
    """Add attention, then the MLP, each on the normed stream."""

    def __init__(self, config: ModelConfig, gated: bool, kernels: Kernels = AUTO) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        self.norm_1 = RMSNorm(config.width, config.norm_eps)
        self.attn = Attention(config, gated, kernels)
        self.norm_2 = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Map the stream x [B, L, d]; the other inputs are those of `Context`."""
        return self.kernels.block(self, x, rope, value_rows, mask)

    def by_torch(
        self, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Map the stream by torch's operators and the kernels' attention."""
        x = x + self.attn(self.norm_1(x), rope, value_rows, mask)
        return x + self.mlp(self.norm_2(x))

    def weights(self) -> BlockWeights:
        """Return the parameters, in the order in which kernels take them."""
        attn, mlp = self.attn, self.mlp
        return BlockWeights(
            norm_1=self.norm_1.weight,
            query=attn.c_q.weight,
            key=attn.c_k.weight,
            value=attn.c_v.weight,
            merge=attn.c_proj.weight,
            norm_2=self.norm_2.weight,
            fc=mlp.fc.weight,
            proj=mlp.proj.weight,
            gate=None if attn.ve_gate is None else attn.ve_gate.weight,
        )

    def has_hooks(self) -> bool:
        """Return True if something is to be called whenever the block is."""
        return bool(self._forward_hooks)

    def matrices(self) -> list[tuple[Attention | Linear, Tensor]]:
        """Return the matrices as they multiply the stream, each with the module that does so."""
        linear = [self.attn.c_proj, self.mlp.fc, self.mlp.proj]
        if self.attn.ve_gate is not None:
            linear.append(self.attn.ve_gate)
        return [(self.attn, self.attn.joint_weight()), *((layer, layer.weight) for layer in linear)]


@contextmanager
def cast_once(blocks: Iterable[Block]) -> Iterator[None]:
    """Under autocast, cast the matrices of blocks once for all their calls; else do nothing.

    A compiled block would cast them in every call, as would an eager one the joint matrix of its attention.
    """
    matrices = [
        each
        for block in blocks
        if torch.is_autocast_enabled(block.norm_1.weight.device.type)
        for each in block.matrices()
    ]
    for module, matrix in matrices:
        module.cast = matrix.to(torch.get_autocast_dtype(matrix.device.type))
    try:
        yield
    finally:
        for module, _ in matrices:
            module.cast = None
