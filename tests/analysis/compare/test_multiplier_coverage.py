"""The study of the multiplier's intervals in a reduced form; `make validate` runs it in full."""

import pytest

from validation import multiplier


@pytest.mark.parametrize(("kind", "studies", "entries"), [("single", 4, 4), ("flops", 2, 3)])
def test_most_intervals_of_a_few_studies_hold_the_truth(kind, studies, entries, monkeypatch):
    monkeypatch.setattr(multiplier, "RESAMPLES", 100)
    rows = multiplier.summarise(kind, multiplier.simulate(kind, range(studies)))
    assert len(rows) == entries
    assert all(row["refused"] == 0 and row["studies"] == studies for row in rows)
    # Of a few studies with 95 % coverage each, half of the intervals missing the truth is far out.
    assert all(row["coverage"] > 0.5 for row in rows)


def test_the_truth_is_that_of_the_drawn_losses():
    truth = multiplier.truths("single")
    assert truth["k at equal tokens, non_embedding"] == pytest.approx(2.0)
    runs = multiplier.ladder_runs(**multiplier.KINDS["single"])
    losses = runs.set_index("scale")["val_loss_nats"]
    small, large = losses["transformer_6x768"], losses["transformer_6x1024"]
    assert truth["share of the gap"] == pytest.approx((small - losses["looped_140m"]) / (small - large))
