"""Scores from what options got, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.evaluation.bundle import Task
from harness.evaluation.results import TaskResult, grade, predictions
from harness.evaluation.scores import suite_score, task_score

TASK = Task(label="a", file="a.jsonl", kind="multiple_choice", shots=0, baseline=0.62)
NAN = math.nan


def result(correct, options=2, task=TASK, seed=1):
    correct = np.array([correct], bool)
    values = np.zeros(correct.shape)
    return TaskResult(
        task=task,
        seed=seed,
        depths=(4,),
        correct=correct,
        log_prob=values - 1.0,
        margin=values + (NAN if options == 1 else 0.5),
        options=np.full(correct.shape[1], options),
        cropped=0,
    )


def test_the_least_mean_wins_and_the_first_of_equals():
    nats = np.array([[[4.0, 3.0, NAN], [2.0, 2.0, 2.0], [1.0, 5.0, 9.0]]])
    tokens = np.array([[2, 1, 0], [1, 1, 1], [1, 5, 10]])
    assert predictions(nats, np.zeros(nats.shape, bool), tokens).tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("means", [[NAN, 1.0], [1.0, NAN], [NAN, NAN], [2.0, NAN, 1.0], [NAN, 2.0, 1.0]])
def test_options_without_a_scored_token_are_treated_as_min_does(means):
    nats = np.array([[means]])
    chosen = predictions(nats, np.zeros(nats.shape, bool), np.ones(nats.shape[1:]))
    assert chosen.tolist() == [[means.index(min(means))]]


def test_one_option_is_right_where_every_token_was_the_likeliest():
    exact = np.array([[[True], [False]]])
    assert predictions(np.ones(exact.shape), exact, np.ones((2, 1))).tolist() == [[1, 0]]


def test_log_probability_per_byte_and_margin():
    nats = np.array([[[6.0, 2.0, 8.0], [1.0, 3.0, NAN]]])
    tokens, sizes = np.array([[2, 1, 2], [1, 1, 0]]), np.array([[3, 2, 4], [2, 2, 0]])
    graded = grade(nats, np.zeros(nats.shape, bool), tokens, sizes, np.array([1, 1]), np.array([3, 2]))
    assert graded["correct"].tolist() == [[True, False]]
    assert graded["log_prob"].tolist() == [[-1.0, -1.5]]
    assert graded["margin"].tolist() == [[-1.0 + (2.0 + 2.0) / 2, -1.5 + 0.5]]


def test_a_task_is_centred_by_its_table_and_by_its_options():
    score = task_score([result([True, True, True, False])], 0)
    assert score.accuracy == 0.75 and (score.chance, score.baseline) == (0.5, 0.62)
    assert score.centred == pytest.approx((0.75 - 0.62) / 0.38)
    assert score.chance_corrected == 0.5
    assert score.se == pytest.approx(math.sqrt(0.75 * 0.25 / 4)) and score.seeds_se is None
    assert score.chance_corrected_se == pytest.approx(2 * score.se)
    assert (score.log_prob_per_byte, score.margin_per_byte) == (-1.0, 0.5)


def test_seeds_give_an_error_of_their_own():
    score = task_score([result([True, True]), result([True, False]), result([False, False])], 0)
    assert score.accuracy == 0.5 and score.seeds == 3
    assert score.seeds_se == pytest.approx(0.5 / math.sqrt(3))


def test_a_suite_is_the_mean_of_its_tasks_and_says_how_many_there_were():
    produced = Task(label="b", file="b.jsonl", kind="language_modeling", shots=0, baseline=0.0)
    results = [[result([True, True, True, False])], [result([True, False], options=1, task=produced)]]
    score = suite_score("core", 22, results, 0)
    assert score.tasks == "2 of 22 tasks" and score.items == 6 and score.accuracy is None
    assert score.centred == pytest.approx(((0.75 - 0.62) / 0.38 + 0.5) / 2)
    assert score.chance_corrected == pytest.approx((0.5 + 0.5) / 2)
    errors = [math.sqrt(0.75 * 0.25 / 4) / 0.38, math.sqrt(0.25 / 2)]
    assert score.se == pytest.approx(math.hypot(*errors) / 2)
    assert score.margin_per_byte == 0.5  # of the task that has options
