"""What a pursuit trains next, and whole pursuits under a law."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.design.fisher_information import fisher_information
from analysis.design.ground_truth import at_published_optima, published
from analysis.design.simulate import Noise, grid
from analysis.pursuit.policy import TOO_FEW, Policy, decide, ladder, pilot
from analysis.pursuit.question import Question
from analysis.pursuit.simulate import simulate_pursuit, trained
from tests.analysis.synthetic import study

DEPTHS = (2, 4, 6, 8, 12, 16, 24, 32)
ALLOWANCE = 5.7e20
NOISE = Noise(seed_nats=0.005)


def policy(allowance=ALLOWANCE, width=0.4, **question):
    asked = Question(**{"asked": "exponent", **question})
    return Policy(
        question=asked,
        target_width=width,
        allowance_flops=allowance,
        recurrences=DEPTHS,
        budgets_flops=ladder(allowance),
    )


def candidates(budgets):
    runs = study(budgets=np.array(budgets), recurrences=np.array(DEPTHS, float), fixed=False)[0]
    return runs.assign(nominal_flops=runs["target_flops"])


def law_of(runs):
    made = grid(runs, "non_embedding")
    return at_published_optima(published("140m", made.runs, "non_embedding"), "140m", made.shape)


@pytest.fixture(scope="module")
def offered():
    return candidates(ladder(ALLOWANCE))


def after_the_pilot(policy, offered, seed=3):
    chosen = trained(offered, pilot(policy).cells)
    losses = law_of(offered).loss(chosen["mean_recurrence"].to_numpy(float), chosen["tokens"].to_numpy(float))
    return chosen.assign(val_loss_nats=losses + NOISE.draw(chosen, 1, seed)[0])


def test_budgets_are_factors_of_two_below_a_tenth_of_the_allowance():
    assert ladder(1e20) == (1.56e17, 3.12e17, 6.25e17, 1.25e18, 2.5e18, 5e18, 1e19)
    assert ladder(1e20, 1e18) == (1.25e18, 2.5e18, 5e18, 1e19)


def test_a_pilot_has_replicates_and_spares_most_of_the_allowance():
    first = pilot(policy())
    assert len(set(first.cells)) == len(first.cells)
    seeds = {cell[:2]: 0 for cell in first.cells}
    for cell in first.cells:
        seeds[cell[:2]] += 1
    assert sum(count - 1 for count in seeds.values()) == 8  # degrees of freedom of the noise
    assert first.flops == pytest.approx(sum(cell[1] for cell in first.cells))
    assert first.flops < 0.15 * ALLOWANCE


def test_an_allowance_below_the_pilot_buys_nothing():
    poor = replace(policy(), allowance_flops=1e18)
    assert pilot(poor).cells == ()
    assert "does not pay the pilot" in pilot(poor).reason


def test_the_same_runs_lead_to_the_same_cells(offered):
    runs = after_the_pilot(policy(), offered)
    one, other = (decide(policy(), runs, 8e19) for _ in range(2))
    assert one.cells == other.cells != ()
    assert decide(policy(), runs, 8e19, always_answer=True).cells == one.cells


def test_a_cell_that_failed_is_not_chosen_again(offered):
    runs = after_the_pilot(policy(), offered)
    first = decide(policy(), runs, 8e19)
    again = decide(policy(), runs, 8e19, taken=first.cells)
    assert [cell[:2] for cell in again.cells] == [cell[:2] for cell in first.cells]
    assert not set(again.cells) & set(first.cells)


def test_a_cell_that_failed_twice_is_not_tried_again(offered):
    runs = after_the_pilot(policy(), offered)
    first = decide(policy(), runs, 8e19)
    cell = first.cells[0]
    failed = [cell, (*cell[:2], cell[2] + 1)]
    assert cell[:2] not in {each[:2] for each in decide(policy(), runs, 8e19, taken=failed).cells}


def test_recurrences_that_bracket_no_optimum_end_a_pursuit_with_the_reason(offered):
    deep = replace(policy(), recurrences=(24, 28, 32, 36, 40))
    budgets = deep.budgets_flops
    runs = study(budgets=np.array(budgets), recurrences=np.array(deep.recurrences, float), fixed=False)[0]
    chosen = trained(runs, pilot(deep).cells)
    columns = (chosen[name].to_numpy(float) for name in ("mean_recurrence", "tokens"))
    errors = Noise(seed_nats=1e-4).draw(chosen, 1, 0)[0]
    last = decide(deep, chosen.assign(val_loss_nats=law_of(offered).loss(*columns) + errors), 1e20)
    assert (last.cells, last.answered) == ((), False)
    assert last.reason == TOO_FEW


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    allowance=st.sampled_from([2e20, 5.7e20]),
    width=st.sampled_from([0.03, 0.2, 0.6]),
    sd=st.sampled_from([0.002, 0.02]),
    seed=st.integers(0, 100),
)
def test_no_pursuit_spends_more_than_its_allowance(allowance, width, sd, seed):
    runs = candidates(ladder(allowance))
    one = simulate_pursuit(policy(allowance, width), runs, law_of(runs), Noise(seed_nats=sd), seed)
    cells = [cell for each in one.rounds for cell in each.cells]
    assert len(set(cells)) == len(cells)  # each is trained once
    assert one.spent_flops == pytest.approx(sum(cell[1] for cell in cells))
    assert one.spent_flops <= allowance * (1 + 1e-9)
    last = one.rounds[-1]
    assert last.answered == (last.answer.width is not None and last.answer.width <= width)


@pytest.mark.parametrize("question", [{"quantity": "tokens"}, {"asked": "optimum", "target_flops": 1e20}])
def test_other_questions_end_too(offered, question):
    asked = policy(width=0.5, **question)
    one = simulate_pursuit(asked, offered, law_of(offered), NOISE, 1)
    last = one.rounds[-1].answer
    assert one.rounds[-1].answered
    assert last.low < one.true < last.high
    width = np.log(last.high / last.low) if asked.question.target_flops else last.high - last.low
    assert last.width == pytest.approx(width)


def test_tokens_are_worth_what_a_finite_difference_along_the_curve_says():
    """log D* = log C - log f(mu*): its derivative by log mu* is that of -log f."""
    budgets = np.array([4e18, 8e18, 16e18, 32e18])
    runs = candidates(budgets)
    shape = grid(runs, "non_embedding").shape
    found = fisher_information([law_of(runs)], shape, budgets, np.array(DEPTHS, float), 0.005, None, "tokens")
    step = 1e-6
    for optimum, flops, worth in zip(found.optima[0], budgets, found.worth[0], strict=True):
        ends = [float(shape.tokens(np.exp(optimum + sign * step), flops)) for sign in (1, -1)]
        assert worth == pytest.approx(np.log(ends[0] / ends[1]) / (2 * step), rel=1e-6)
