"""Settings in which points of equal compute and size differ: the arms of a foreign table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import fdtrc

FEW_VALUES = 12  # of a column that is a setting and no measurement
LEVEL = 0.01  # p value of the test that the values of a setting have equal losses
Keys = Sequence[np.ndarray[Any, Any]]


def varied_setting(frame: pd.DataFrame, cells: Keys, names: Sequence[str]) -> str | None:
    """Return the first of some columns of few values in which the points of a cell differ.

    Parameters
    ----------
    cells : keys whose equal values make a cell: the budget and the swept variable [points] each.
    """
    for name in names:
        values = frame[name].astype(str)
        if 1 < values.nunique() <= FEW_VALUES and (values.groupby([*cells]).nunique() > 1).any():
            return name
    return None


def differing_losses(frame: pd.DataFrame, cells: Keys, name: str) -> str | None:
    """Return what to write where losses differ between the values of a setting by more than noise.

    Notes
    -----
    Fisher's F of the values in a two-way layout of cells by values, as if it were balanced.
    """
    gap = frame["loss"] - frame["loss"].groupby([*cells]).transform("mean")
    count = pd.Series(1, frame.index).groupby([*cells]).transform("sum")
    gap, values = gap[count > 1], frame[name].astype(str)[count > 1]
    cell_count = round(float((1 / count[count > 1]).sum()))
    means = gap.groupby(values).transform("mean")
    freedom = values.nunique() - 1, len(gap) - cell_count - values.nunique() + 1
    between, within = float(np.square(means).sum()), float(np.square(gap - means).sum())
    if min(freedom) < 1 or between == 0:
        return None
    ratio = between / freedom[0] / max(within / freedom[1], 1e-300)
    if fdtrc(*freedom, ratio) > LEVEL:
        return None
    shown = [f"'{one}'" if isinstance(one, str) else f"{one:g}" for one in _distinct(frame[name])]
    column = name if name.isidentifier() else f"`{name}`"
    return f'{name} ({", ".join(shown)}), and so do their losses: keep one, where="{column} == {shown[0]}"'


def _distinct(values: pd.Series) -> list[Any]:
    return sorted(values.dropna().unique().tolist(), key=lambda one: (isinstance(one, str), one))
