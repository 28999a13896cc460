"""A law of depth alone, fitted to one depth curve."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.format import number, span
from analysis.laws.depth_curve import DepthFit, fit_depth_curve
from analysis.laws.registry import LAWS
from analysis.serialize import HIDDEN


@dataclass(frozen=True, kw_only=True)
class CurveLaw:
    """One law fitted to one depth curve; `refusal`: why the curve does not determine it."""

    run_id: str
    mean_recurrence: float | None  # None: not in the table
    parameters: dict[str, float]
    intervals: dict[str, tuple[float | None, float | None]]  # None: an open end
    rms_nats: float | None
    refusal: str | None = None
    points: pd.DataFrame = field(  # depth, loss and, where known, loss_se
        default_factory=pd.DataFrame, repr=False, compare=False, metadata=HIDDEN
    )
    cov: pd.DataFrame = field(  # of the parameters, by linear theory
        default_factory=pd.DataFrame, repr=False, compare=False, metadata=HIDDEN
    )

    def summary(self) -> str:
        """Return the parameters with their intervals, and the refusal."""
        values = ", ".join(
            f"{name} = {number(value)}{f' {span(*self.intervals[name])}' if name in self.intervals else ''}"
            for name, value in self.parameters.items()
        )
        return "; ".join(text for text in (values, self.refusal) if text)


def fit_curve(
    name: str, run_id: str, mean_recurrence: float | None, points: pd.DataFrame, confidence: float
) -> CurveLaw:
    """Fit a law of depth to one run's losses.

    Parameters
    ----------
    points : depth, ascending, loss and, where it is known, loss_se, the standard error of the loss.
    """
    depths, losses = (points[column].to_numpy(float) for column in ("depth", "loss"))
    errors = points["loss_se"].to_numpy(float) if "loss_se" in points else None
    fit = fit_depth_curve(depths, losses, errors=errors, law=name, confidence=confidence)
    values = {"L_inf": fit.floor_nats, "Z": fit.amplitude_nats, "z": fit.rate}
    names = [parameter.name for parameter in LAWS[name].parameters]
    return CurveLaw(
        run_id=run_id,
        mean_recurrence=mean_recurrence,
        parameters={key: value for key in names if (value := values[key]) is not None},
        intervals={key: ends for key, ends in _intervals(fit, confidence).items() if key in names},
        rms_nats=fit.rms_nats,
        refusal=fit.refusal,
        points=points,
        cov=_covariance(run_id, fit, names),
    )


def _covariance(run_id: str, fit: DepthFit, names: list[str]) -> pd.DataFrame:
    """Return the covariance of a law's parameters by run and name; empty where the curve has no law."""
    if fit.floor_nats is None or fit.amplitude_nats is None:
        return pd.DataFrame()
    labels = pd.MultiIndex.from_product([[run_id], ["L_inf", "Z", "z"]], names=["run_id", "parameter"])
    matrix = pd.DataFrame(fit.covariance, index=labels, columns=labels)
    own = [(run_id, name) for name in names]
    return matrix.loc[own, own]


def _intervals(fit: DepthFit, confidence: float) -> dict[str, tuple[float | None, float | None]]:
    """Return the profile interval of z, and Student's of the other two, to first order."""
    if fit.floor_nats is None or fit.amplitude_nats is None:
        return {}
    quantile = float(stdtrit(len(fit.depths) - 3, (1 + confidence) / 2))
    floor, amplitude = (quantile * float(error) for error in np.sqrt(np.diag(fit.covariance))[:2])
    return {
        "L_inf": (fit.floor_nats - floor, fit.floor_nats + floor),
        "Z": (fit.amplitude_nats - amplitude, fit.amplitude_nats + amplitude),
        "z": (fit.rate_low, fit.rate_high),
    }
