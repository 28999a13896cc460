"""The front of quality against cost: the models beside which no other one costs less at no larger loss."""

from __future__ import annotations

import numpy as np
import pandas as pd


def on_front(costs: pd.Series, losses: pd.Series) -> pd.Series:
    """Return which rows are on the front: none costs at most as much with at most the loss, one of them less.

    Rows without a loss are on no front.
    """
    cost, loss = costs.to_numpy(float), losses.to_numpy(float)
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [other, row]
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return pd.Series(np.isfinite(loss) & ~(no_worse & better).any(axis=0), index=costs.index)
