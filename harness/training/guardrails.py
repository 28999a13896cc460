"""Guardrails: skipped steps, loss spikes and divergence; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.run.config import GuardrailsConfig


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
