"""The kernels in torch alone: they run on every device, and all others must agree with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.interface import IGNORE, BlockLayer, Context, CoreLayers, LoopInputs, Workload, leading

# Logits held at once, in float32: what stays in a CPU's cache, or what keeps a GPU busy.
_CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**26}
_LEAST_TOKENS = 64  # below it the matrix products starve
_TOKENS_AT_ONCE = 1024  # per thread: what one operator passes to the next should stay in the caches


class ReferenceKernels:
    """Compute everything by torch's operators."""

    name = "reference"

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend causally: query [B, H, L, D], key and value [B, KV, L, D] to a result [B, H, L, D]."""
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)

    def block(
        self, layer: BlockLayer, x: Tensor, rope: Tensor, value_rows: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Map the stream x [B, L, d] by a block."""
        return layer.by_torch(x, rope, value_rows, mask)

    def is_one_operator(self, layer: BlockLayer, x: Tensor, mask: Tensor | None) -> bool:
        """Return False: a block is a dozen of torch's operators."""
        return False

    def loops(self, core: CoreLayers, inputs: LoopInputs, counts: Sequence[int]) -> Tensor:
        """Run sequence i `counts[i]` times through the core, without gradient."""
        return run_loops(torch.no_grad()(core.loop_once), inputs, counts)

    @torch.no_grad()
    def token_nats(self, x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """Return -log p of each label, float32 [N], zero where it is IGNORE."""
        nats = torch.zeros(labels.shape, device=x.device)
        for part in _chunks(len(x), len(head), x.device):
            logits = F.linear(x[part], head).float()
            nats[part] = F.cross_entropy(logits, labels[part], ignore_index=IGNORE, reduction="none")
        return nats

    @torch.no_grad()
    def nats_and_gradients(self, x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of `token_nats` and its gradients by x and head, made chunk by chunk."""
        dtype = _compute_dtype(x)
        matrix = head.to(dtype)
        total = torch.zeros((), device=x.device)
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head)
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(len(x), len(head), x.device):
                rows, valid = x[part].to(dtype), (labels[part] != IGNORE).unsqueeze(1)
                nats, grad = _nats_and_gradient(F.linear(rows, matrix).float(), labels[part])
                total += (nats * valid).sum()
                grad = grad.to(dtype)
                grad_x[part] = (grad @ matrix) * valid
                grad_head += grad.T @ (rows * valid)
        return total, grad_x, grad_head

    @torch.no_grad()
    def token_scores(self, x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p of each label, float32 [N], and whether it is the likeliest token, bool [N]."""
        nats = torch.empty(labels.shape, device=x.device)
        hits = torch.empty(labels.shape, dtype=torch.bool, device=x.device)
        for part in _chunks(len(x), len(head), x.device):
            logits = F.linear(x[part], head).float()
            nats[part] = F.cross_entropy(logits, labels[part], reduction="none")
            hits[part] = logits.argmax(dim=1) == labels[part]
        return nats, hits

    def tokens_at_once(self, workload: Workload) -> int:
        """Return the tokens per thread that a CPU takes through a step in the least time."""
        return _TOKENS_AT_ONCE

    def refusal(self, workload: Workload) -> str | None:
        """Return None: torch takes every step."""
        return None


def run_loops(
    step: Callable[[Tensor, Tensor, Tensor, Context], Tensor],
    inputs: LoopInputs,
    counts: Sequence[int],
    state: Tensor | None = None,
) -> Tensor:
    """Return the states [B, L, d] after `counts[i]` steps of sequence i; counts descend.

    A sequence joins when its own count remains, so that all leave together. Those that have a `state`
    [b <= B, L, d] already go on from it; the others start from `inputs.first`.
    """
    state = inputs.first[:0] if state is None else state
    joined = len(state)
    for remaining in range(counts[0], 0, -1):
        active = sum(count >= remaining for count in counts)
        if active > joined:
            state, joined = torch.cat([state, inputs.first[joined:active]]), active
        state = step(state, leading(inputs.drive, active), inputs.carry, inputs.context.leading(active))
    return state


def _chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Yield ranges of tokens, so that full logits never exist."""
    elements = _CHUNK_ELEMENTS["cpu" if device.type == "cpu" else "other"]
    size = max(_LEAST_TOKENS, elements // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _nats_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nats [n, 1] of a chunk's labels (any number where ignored) and their gradients [n, V]."""
    target = labels.clamp(min=0).unsqueeze(1)
    probabilities = torch.softmax(logits, dim=1)
    # log Z from the largest logit, whose probability never underflows
    log_normaliser = logits.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()
    nats = log_normaliser - logits.gather(1, target)
    return nats, probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
