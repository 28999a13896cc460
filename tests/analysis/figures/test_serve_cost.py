"""The front of quality against cost, and its figure."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.figures.serve_cost import serve_cost_figure
from analysis.serve_front import on_front


def test_the_front_holds_what_no_other_row_beats():
    costs = pd.Series([1.0, 2.0, 3.0, 2.0, 2.0, 0.5])
    losses = pd.Series([4.0, 3.0, 3.5, 3.0, 2.9, np.nan], index=costs.index)
    # 3.0 at 2 is beaten at the same cost by 2.9, and 3.5 at 3 by both; the last has no loss.
    assert on_front(costs, losses).tolist() == [True, False, False, False, True, False]
    ties = on_front(pd.Series([1.0, 1.0]), pd.Series([2.0, 2.0]))
    assert ties.tolist() == [True, True]


def rows() -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "model": ["looped"] * 3 + ["plain"],
            "depth": [1, 2, 4, 1],
            "batch": 1,
            "prompt_tokens": 16,
            "serving_bytes": [1e6, 1.1e6, 1.3e6, 2e6],
            "decode_ms_per_token": [1.0, 1.6, 2.9, 1.5],
            "val_loss_nats": [4.2, 4.0, 3.9, 3.9],
        }
    )
    for name, column in (("bytes", "serving_bytes"), ("latency", "decode_ms_per_token")):
        frame[f"front_{name}"] = on_front(frame[column], frame["val_loss_nats"])
    return frame


def test_the_figure_has_a_line_per_model_and_its_data():
    frame = rows()
    assert frame["front_bytes"].tolist() == [True, True, True, False]
    assert frame["front_latency"].tolist() == [True, False, False, True]
    drawn = serve_cost_figure(frame)
    assert list(drawn.tables) == ["bytes", "latency"]
    left, right = drawn.figure.axes
    assert [line.get_label() for line in left.lines][::2] == ["looped", "plain"]
    assert [text.get_text() for text in left.texts] == ["1", "2", "4"]
    assert left.lines[2].get_xdata() == [2e6 / 2**20]
    filled = [len(line.get_xdata()) for line in right.lines[1::2]]
    assert filled == [1, 1]
    assert serve_cost_figure(frame.assign(val_loss_nats=np.nan)) is None
