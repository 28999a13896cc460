"""What the model asks of its kernels, and what it passes to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from model.config import ModelConfig

IGNORE = -100  # the label that is not scored


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training step, as far as the choice of kernels depends on it."""

    config: ModelConfig
    device: str  # "cpu" or "cuda"
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast
    document_mask: bool = False


class BlockWeights(NamedTuple):
    """The weights of one block, matrices [out, in]; `gate` is None in a layer without gated value embeddings.

    The order is that of `struct Weights` in cpu/block.h: no code checks that they agree, so change both.
    """

    norm_1: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    merge: Tensor
    norm_2: Tensor
    fc: Tensor
    proj: Tensor
    gate: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What blocks read beside the stream [B, L, d] of a batch."""

    rope: Tensor  # cos and sin of the angles [L, 1, D / 2, 2]
    value_rows: Mapping[int, Tensor] = field(default_factory=dict)  # by layer: [B, L, kv d] of its table
    mask: Tensor | None = None  # bool [B, 1, L, L], which token attends to which; None: to all before it

    def leading(self, count: int) -> Context:
        """Return the context of the first `count` sequences."""
        rows = {layer: leading(value, count) for layer, value in self.value_rows.items()}
        return replace(self, value_rows=rows, mask=None if self.mask is None else leading(self.mask, count))


@dataclass(frozen=True, kw_only=True)
class LoopInputs:
    """What the loop starts from and reads, for sequences from deepest to shallowest.

    A loop maps the state h to the core's blocks applied to the injection of `drive` and `carry` into h.
    """

    first: Tensor  # states before the first loop [B, L, d]
    drive: Tensor  # what the injection adds in every loop [B, L, d]
    carry: Tensor  # what it carries the state over by: a factor (), one per channel [d], or a matrix [d, d]
    context: Context

    def leading(self, count: int) -> LoopInputs:
        """Return the inputs of the first `count` sequences."""
        return LoopInputs(
            first=leading(self.first, count),
            drive=leading(self.drive, count),
            carry=self.carry,
            context=self.context.leading(count),
        )


def leading(x: Tensor, count: int) -> Tensor:
    """Return the first `count` rows, without a slice (and its zero-filled gradient) where that is all."""
    return x if len(x) == count else x[:count]


class BlockLayer(Protocol):
    """One transformer block, as kernels see it."""

    config: ModelConfig
    kernels: Kernels

    def __call__(
        self, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None
    ) -> Tensor: ...

    def weights(self) -> BlockWeights:
        """Return the block's parameters."""

    def by_torch(
        self, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Map the stream by torch's operators and `Kernels.attention`."""

    def has_hooks(self) -> bool:
        """Return True if something is to be called whenever the block is."""


class CoreLayers(Protocol):
    """The blocks inside the loop, as kernels see them."""

    first_layer: int  # its number in the model

    def core_blocks(self) -> Iterable[BlockLayer]:
        """Return the blocks in their order."""

    def loop_once(self, state: Tensor, drive: Tensor, carry: Tensor, context: Context) -> Tensor:
        """Map the states by one loop."""


class Kernels(Protocol):
    """One implementation of all that a step spends its time on.

    An implementation that does not take some input (another device, precision or size) hands it on to the
    reference, so that every method takes every input. To the caller they differ in speed and rounding alone.
    """

    name: str

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend causally: query [B, H, L, D], key and value [B, KV, L, D] to a result [B, H, L, D].

        Each key/value head serves H / KV query heads.
        """

    def block(
        self, layer: BlockLayer, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Map the stream x [B, L, d] by a block; the other inputs are those of `Context`."""

    def is_one_operator(self, layer: BlockLayer, x: Tensor, mask: Tensor | None) -> bool:
        """Return True if `block` is a single operator for this input: compiling it would gain nothing."""

    def loops(self, core: CoreLayers, inputs: LoopInputs, counts: Sequence[int]) -> Tensor:
        """Run sequence i `counts[i]` times through the core, without gradient; returns states [B, L, d].

        Counts are positive and descend.
        """

    def token_nats(self, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """Return -log p of each label, float32 [N], zero where it is IGNORE; without gradient.

        x is [N, d], head [V, d], labels int64 [N].
        """

    def nats_and_gradients(self, x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of `token_nats`, float32 (), and its gradients by x [N, d] and head [V, d]."""

    def token_scores(self, x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p of each label, float32 [N], and whether it is the likeliest token, bool [N]."""

    def tokens_at_once(self, workload: Workload) -> int:
        """Return the tokens per thread that a CPU takes through a step in the least time."""

    def refusal(self, workload: Workload) -> str | None:
        """Return why no kernel of this implementation is used in such a step; None if one is."""
