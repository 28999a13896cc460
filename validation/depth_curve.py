"""Is the law of a depth curve refused where it should be? Simulate curves of known shape and count.

python validation/depth_curve.py [curves=2000] [out=FILE]

The curves of a scenario are its shape plus normal noise from the generator SEED. For each scenario: the
share of curves whose law is accepted, the shares refused by reason, and how often the 95 % interval of an
accepted z holds the true one. A signal of n standard errors is n times the noise of one depth.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.config import Array
from analysis.laws.depth_curve import DepthFit, fit_depth_curves
from validation.simulated import ROOT, write

SEED = 0
FEW = np.array([1, 2, 3, 4, 6, 8, 12, 16], float)
MANY = np.arange(1.0, 25.0)
FLOOR, AMPLITUDE, RATE = 2.9, 0.7, 0.5  # nats, nats, per loop


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Losses at some depths without noise, the noise of each, and what the table says of it."""

    name: str
    depths: Array
    losses: Array
    noise_nats: float
    stated: bool = True  # the standard errors are in the table
    common: float = 0.0  # share of the noise's variance that all depths of a curve have in common

    def fits(self, curves: int) -> list[DepthFit]:
        """Fit simulated curves."""
        draw = np.random.default_rng(SEED).standard_normal((curves, len(self.depths) + 1))
        noise = self.common**0.5 * draw[:, :1] + (1 - self.common) ** 0.5 * draw[:, 1:]
        errors = np.full_like(noise, self.noise_nats) if self.stated else None
        return fit_depth_curves(self.depths, self.losses + self.noise_nats * noise, errors=errors)


def scenarios() -> list[Scenario]:
    """Return true exponentials, and curves of other shapes at given signals."""
    cases = []
    for depths in (FEW, MANY):
        truth = FLOOR + AMPLITUDE * np.exp(-RATE * depths)
        across = (depths - 1) / np.ptp(depths)
        for noise in (0.0005, 0.005, 0.02):
            for stated in (True, False):
                known = {"depths": depths, "noise_nats": noise, "stated": stated}
                cases.append(Scenario(name="exponential", losses=truth, **known))
                cases.append(
                    Scenario(name="rising by 5 standard errors", losses=FLOOR + 5 * noise * across, **known)
                )
        for noise in (0.005, 0.02):
            known = {"depths": depths, "noise_nats": noise}
            cases.append(
                Scenario(name="exponential, 90 % of the noise in common", losses=truth, common=0.9, **known)
            )
            turn = truth + 10 * noise * across
            cases.append(Scenario(name="exponential that rises by 10 standard errors", losses=turn, **known))
            late = (
                FLOOR
                + AMPLITUDE * np.where(depths < 4, np.exp(-RATE * depths), np.exp(-RATE * 4))
                + 0.2 * across
            )
            cases.append(Scenario(name="falls to T = 4, then rises by 0.2 nats", losses=late, **known))
            cases.append(Scenario(name="power law", losses=FLOOR + AMPLITUDE / depths, **known))
            cases.append(Scenario(name="flat", losses=FLOOR + 0 * depths, **known))
            cases.append(Scenario(name="straight line", losses=FLOOR - 20 * noise * across, **known))
    return cases


def reason(fit: DepthFit) -> str:
    """Return "accepted" or the kind of refusal."""
    if fit.refusal is None:
        return "accepted"
    kinds = ("overthinking", "does not hold", "does not fall", "not identified")
    return next(kind for kind in kinds if kind in fit.refusal)


def summarise(scenario: Scenario, curves: int) -> dict[str, Any]:
    """Return the shares of one scenario."""
    fits = scenario.fits(curves)
    held = [(fit.rate_low or 0.0) <= RATE <= (fit.rate_high or np.inf) for fit in fits if fit.refusal is None]
    exponential = scenario.name.startswith("exponential") and "rises" not in scenario.name
    return {
        "scenario": scenario.name,
        "depths": len(scenario.depths),
        "noise_nats": scenario.noise_nats,
        "errors_stated": scenario.stated,
        "shares": {kind: count / curves for kind, count in sorted(Counter(map(reason, fits)).items())},
        "coverage_of_z": float(np.mean(held)) if held and exponential else None,
    }


def main(curves: int = 2000, out: str = str(ROOT / "docs" / "validation" / "depth_curve.json")) -> None:
    """Simulate, print one line per scenario, and write the summary."""
    rows = []
    for scenario in scenarios():
        rows.append(summarise(scenario, curves))
        print(rows[-1], flush=True)
    result = {
        "command": f"python validation/depth_curve.py curves={curves}",
        "seed": SEED,
        "floor_amplitude_rate": [FLOOR, AMPLITUDE, RATE],
        "rows": rows,
    }
    write(Path(out), result)


if __name__ == "__main__":
    settings = dict(text.split("=", 1) for text in sys.argv[1:])
    main(**{name: int(value) if name == "curves" else value for name, value in settings.items()})
