"""The study of verdicts in a reduced form; `make validate` runs it in full."""

import numpy as np
import pytest

from validation import compare


@pytest.mark.parametrize("kind", compare.KINDS)
def test_most_intervals_of_a_few_studies_hold_the_truth(kind, monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 100)
    rows = {row["entry"]: row for row in compare.summarise(kind, compare.simulate(kind, range(3)))}
    for row in rows.values():
        assert np.isfinite(row["coverage"]) and row["differences"] >= 1
    # Three studies share their noise level over 18 cells; with 95 % coverage, under .7 is far out.
    assert rows["each recurrence"]["coverage"] >= 0.7
    if kind == "equal":
        assert rows["best recurrence"]["looped_lower"] <= 0.2


def test_the_known_difference_is_that_of_the_drawn_losses():
    runs = compare.table("law")
    budget = compare.INSIDE[2]
    cell = runs[runs["target_flops"] == budget]
    looped = cell[cell["kind"] == "looped"]["val_loss_nats"].min()
    gap = looped - cell[cell["kind"] == "fixed"]["val_loss_nats"].iloc[0]
    assert compare.best_difference("law", budget) == pytest.approx(gap, abs=1e-3)  # best of a grid of six
    assert compare.table("equal").groupby("target_flops")["val_loss_nats"].nunique().eq(1).all()
