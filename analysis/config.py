"""What the user decides about a fit, and the types that every part of the analysis shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.str_]]
Counts = np.ndarray[Any, Any]  # how often points count; 16-bit integers where a resampling drew them

# flops_over_six: the released accounting's FLOPs per token over six, the size that C = 6 N D would give
ParameterCount = Literal["non_embedding", "no_token_embedding", "all", "flops_over_six"]

Resampling = Literal["noise", "pairs", "stratified", "block"]

Progress = Callable[[str, float], None]  # called with the stage and the share of it that is done

# What laws need at least. Planning reads these before a sweep is paid for, so they import no law.
MIN_SURFACE_RUNS = 8  # the five parameters of the surface and three runs to spare
MIN_SURFACE_VALUES = 3  # distinct sizes and token counts of the surface
MIN_ISO_DEPTH_RUNS = 7  # more than the six parameters of the iso-depth law
MIN_LADDER_SIZES = 5  # the three parameters of the law of size and two sizes to spare
MIN_CURVES = 3  # depth curves of a law over several: the scatter of two is next to unknown
MIN_DEPTHS = 5  # of one depth curve
MIN_RATES, MIN_RATE_RECURRENCES = 4, 3  # of the law of the depth rate over the recurrence


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit; the same table and the same settings give the same bytes."""

    bootstrap: Annotated[int, Ge(100)] = 1000  # resamples behind every interval
    seed: Annotated[int, Ge(0)] = 0  # of the resamples
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95  # level of every interval
    parameter_count: ParameterCount = "non_embedding"  # what N(mean_recurrence) counts
    # Huber delta of the log loss; 10 is squared error. None: 1.345 times the scatter of the residuals; for
    # the surface of an isoFLOP study the published 1e-3 (see `fit_surface`)
    huber_delta: Annotated[float, Gt(0)] | None = None
    profiles: bool = True  # profile intervals of the surface; otherwise bootstrap intervals
    resampling: Resampling = "noise"  # of isoFLOP laws; see `resampling_weights` for what each assumes
    block: str = "trunk_id"  # resampling=block: column whose equal values form one block
    shared_noise: Annotated[float, Ge(0), Le(1)] = 1.0  # share of the noise variance common to a trunk's runs
    validation: bool = True  # held-out predictions, and refits under other choices
    max_epochs: Annotated[float, Gt(0)] = 1.0  # runs that repeat their data more often are left out
