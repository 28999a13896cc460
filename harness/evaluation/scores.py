"""Scores of a task and of a suite from what its options got: accuracy, centrings, log-probabilities, errors.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


def predictions(nats: Array, exact: Array, tokens: Array) -> Array:
    """Return the chosen option of each item, int [D, N]; for one option alone, 1 where it was exact, else 0.

    Chosen is the option with the least mean nats per token, the first of equals. An option without a scored
    token has no mean: like the definition, which compares with `min`, it is chosen where it stands first and
    never elsewhere.
    """
    if nats.shape[2] == 1:
        return exact[:, :, 0].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = nats / tokens
    missing = np.isnan(means)
    chosen = np.argmin(np.where(missing, np.inf, means), axis=2)
    return np.where(missing[:, :, 0], 0, chosen)
