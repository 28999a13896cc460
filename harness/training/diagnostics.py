"""Diagnostics of a training step: gradient norms, the state after each loop, the injection's spectral radius,
and whether the loss has diverged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.distributed.parallel import Replica, full_tensor, local_rows
from harness.run.config import GuardrailsConfig
from model.injection import build_injection
from model.transformer import LoopedTransformer

PARTS = ("embedding", "value_tables", "prelude", "injection", "core", "coda")  # the rest is "other"


class GradientNorms:
    """Measure and clip the gradient of a replica, whole or sharded."""

    def __init__(self, replica: Replica) -> None:
        self._sharded, self._ranks = replica.sharded, replica.ranks
        self._parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in replica.model.named_parameters():
            part = name.split(".")[0]
            self._parts.setdefault(part if part in PARTS else "other", []).append(parameter)
        self.names = list(self._parts)

    def squares(self) -> Tensor:
        """Return each part's sum of squares, float64 [parts]; to be summed over processes."""
        gradients = [_gradients(parameters) for parameters in self._parts.values()]
        norms = torch._foreach_norm([gradient for part in gradients for gradient in part])
        if self._sharded or self._ranks.first:
            squares = torch.stack(norms).double().square()
            return torch.stack([part.sum() for part in squares.split([len(part) for part in gradients])])
        return torch.zeros(len(gradients), dtype=torch.float64, device=norms[0].device)

    def rescale(self, scale: float, norm: float, limit: float) -> None:
        """Multiply the gradient by `scale`, then clip its norm, which is `norm` by then, to `limit`."""
        factor = scale * min(1.0, limit / norm) if math.isfinite(norm) and norm > 0 else scale
        if factor != 1.0:
            gradients = [g for parameters in self._parts.values() for g in _gradients(parameters)]
            torch._foreach_mul_(gradients, factor)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [local_rows(parameter.grad) for parameter in parameters if parameter.grad is not None]


class StateProbe:
    """Measure the root mean square of the state after each loop of the forward passes that it probes.

    It reads the output of the last core block in a hook: nothing is computed twice and nothing is changed.
    """

    def __init__(self, model: LoopedTransformer) -> None:
        self._last = model.core[-1] if model.config.kind == "looped" else None
        self._depths: list[int] = []
        self._squares: list[tuple[int, Tensor]] = []  # (loops that remain, mean squares [active])
        self._passes: list[tuple[list[int], list[tuple[int, Tensor]]]] = []

    @contextmanager
    def probing(self, depths: Sequence[int], due: bool) -> Iterator[None]:
        """Probe one forward pass over sequences of these depths, if `due`."""
        if not due or self._last is None:
            yield
            return
        self._depths, self._squares = sorted(depths, reverse=True), []
        with self._last.register_forward_hook(self._record):  # slow: no operator takes several loops
            yield
        self._passes.append((self._depths, self._squares))

    def by_loop(self) -> list[float]:
        """Return the root mean square after loop 1, 2, ... over the probed passes, and reset."""
        total: dict[int, list[float]] = {}
        for depths, squares in self._passes:
            for remaining, active in squares:
                for depth, square in zip(depths, active.tolist(), strict=False):
                    total.setdefault(depth - remaining + 1, []).append(square)
        self._passes = []
        return [math.sqrt(math.fsum(total[loop]) / len(total[loop])) for loop in sorted(total)]

    def _record(self, _module: nn.Module, _inputs: object, state: Tensor) -> None:
        remaining = self._depths[0] - len(self._squares)
        self._squares.append((remaining, state.detach().float().square().mean(dim=(1, 2))))


def spectral_radius(replica: Replica) -> float:
    """Return the spectral radius of the injection's linear part. Every process must call it."""
    model = replica.model
    plain = build_injection(model.config)
    state = {name: full_tensor(parameter.detach()) for name, parameter in model.injection.named_parameters()}
    plain.load_state_dict(state, assign=True)
    return plain.spectral_radius()


class Diverged(RuntimeError):
    """The loss or gradient stayed non-finite, or the mean loss rose past its limit. A result of the run."""


@dataclass
class LossGuard:
    """Running statistics of the loss; the fields are stored in the checkpoints."""

    mean_nats: float | None = None  # exponential average over `average_steps`
    variance: float = 0.0  # of the loss around that mean, nats²
    lowest_mean_nats: float | None = None
    seen: int = 0  # losses averaged
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    loss_spikes: int = 0

    def admits(self, config: GuardrailsConfig, loss_nats: float, gradient_norm: float, step: int) -> bool:
        """Update the statistics with a step; return True if its update may be applied.

        Raises
        ------
        Diverged : `max_skipped_steps` in a row are not finite, or the mean loss is more than `max_rise_nats`
            above its lowest value.

        Notes
        -----
        A step whose loss or gradient is not finite is counted and not applied. A loss more than
        `spike_deviations` above the running mean is only counted.
        """
        if not (math.isfinite(loss_nats) and math.isfinite(gradient_norm)):
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= config.max_skipped_steps:
                raise Diverged(
                    f"{self.skipped_in_a_row} steps in a row without a finite loss and gradient, the last: "
                    f"loss {loss_nats}, gradient norm {gradient_norm} at step {step}"
                )
            return False
        self.skipped_in_a_row = 0
        self._average(config, loss_nats)
        self._check_rise(config, step)
        return True

    def _average(self, config: GuardrailsConfig, loss_nats: float) -> None:
        if self.mean_nats is None:
            self.mean_nats = loss_nats
        distance = loss_nats - self.mean_nats
        if self.seen >= config.average_steps and distance > config.spike_deviations * math.sqrt(
            self.variance
        ):
            self.loss_spikes += 1
        # A plain average over the first `average_steps`, so that the first loss is not overweighted.
        weight = 1 / min(self.seen + 1, config.average_steps)
        self.mean_nats += weight * distance
        self.variance = (1 - weight) * (self.variance + weight * distance * distance)
        self.seen += 1

    def _check_rise(self, config: GuardrailsConfig, step: int) -> None:
        assert self.mean_nats is not None
        if self.lowest_mean_nats is None or self.mean_nats < self.lowest_mean_nats:
            self.lowest_mean_nats = self.mean_nats
        rise = self.mean_nats - self.lowest_mean_nats
        if config.max_rise_nats is not None and rise > config.max_rise_nats:
            raise Diverged(
                f"the mean loss rose from {self.lowest_mean_nats:.4g} to {self.mean_nats:.4g} nats at step "
                f"{step}, more than guardrails.max_rise_nats={config.max_rise_nats}"
            )
