"""The symbolic suite: its answers are right, and guessing gets what it says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from harness.evaluation.bundle import read_items, read_suite
from harness.evaluation.symbolic import symbolic_bundle

CLOSING = dict(zip("([{<", ")]}>", strict=True))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    bundle = symbolic_bundle(tmp_path_factory.mktemp("symbolic"))
    return {task.label: (task, read_items(bundle, task)) for task in read_suite(bundle, "symbolic").tasks}


def brackets(query):
    open_ = []
    for character in query:
        if character in CLOSING:
            open_.append(CLOSING[character])
        else:
            assert open_.pop() == character
    return open_[-1]


def copy(query):
    letters = query.split()
    return letters[len(letters) - 4] if len(letters) > 4 else letters[0]


def operators(query):
    _name, add, given = re.fullmatch(r"(.)x=x\+(\d);\1(\d)=", query).groups()
    return str(int(given) + int(add))


def lookup(query):
    *pairs, asked = query.rstrip("=").split(";")
    return dict(pair.split("=") for pair in pairs)[asked]


@pytest.mark.parametrize(
    ("label", "solve"),
    [
        ("symbolic_brackets", brackets),
        ("symbolic_copy", copy),
        ("symbolic_operators", operators),
        ("symbolic_lookup", lookup),
    ],
)
def test_the_gold_option_is_the_answer_and_guessing_gets_a_quarter(suite, label, solve):
    task, items = suite[label]
    assert len(items) == 200 and task.baseline == 0.25
    assert all(len(set(item.endings)) == 4 for item in items)
    assert all(item.endings[item.gold] == solve(item.stems[0]) for item in items)
    # No position is preferred: chi-squared with 3 degrees of freedom, below its 99.9 % point.
    counts = np.bincount([item.gold for item in items], minlength=4)
    assert ((counts - 50) ** 2 / 50).sum() < 16.27


def test_the_task_without_options_is_won_by_copying_alone(suite):
    task, items = suite["symbolic_copy_exact"]
    assert task.kind == "language_modeling" and task.baseline == 0
    for item in items:
        letters = item.stems[0].split()
        assert len(letters) >= 3 and {*letters, item.endings[0].strip()} == {letters[0]}


def test_it_is_no_part_of_core(suite, tmp_path):
    assert all(label.startswith("symbolic_") for label in suite)
    assert symbolic_bundle(tmp_path) == symbolic_bundle(tmp_path)
