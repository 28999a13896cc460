"""A result computed again on another processor leaves its files as they are."""

import json
import os
import subprocess
import sys

import pytest

from analysis import FitConfig, fit
from analysis.result_files import same_json, same_text, write_result
from tests.analysis.synthetic import INSIDE, study


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('{"a": 0.123456}', '{"a": 0.123457}', True),
        ('{"a": 0.123456}', '{"a": 0.123469}', False),
        ('{"a": 0.99999971}', '{"a": 1.0}', True),
        ('{"a": 4.2e18}', '{"a": 4.3e18}', False),
        ('{"runs": 25}', '{"runs": 26}', False),
        ('{"runs": 25}', '{"runs": 25.0}', False),
        ('{"gradient": 3.7e-14}', '{"gradient": 2.5e-9}', True),
        ('{"gradient": 3.7e-14}', '{"gradient": 2.5e-5}', False),
        ('{"a": [2.630717, 2.771692]}', '{"a": [2.628803, 2.771007]}', True),  # 1.4 % of the width
        ('{"a": [2.630717, 2.771692]}', '{"a": [2.618803, 2.771007]}', False),
        ('{"a": [2.63, 2.77, 2.8]}', '{"a": [2.63, 2.771, 2.8]}', False),
        ('{"a": [null, 2.77]}', '{"a": [null, null]}', False),
        ('{"a": "at µ = 18.9, gradient 3e-14"}', '{"a": "at µ = 19.0, gradient 2e-14"}', True),
        ('{"a": "at µ = 18.9"}', '{"a": "at µ = 19.2"}', False),
        ('{"a": "2 budgets"}', '{"a": "3 budgets"}', False),
        ('{"a": 1.5, "b": 2}', '{"b": 2, "a": 1.5}', False),
        (
            '{"not_identified": {"x": "at a bound"}, "intervals": {"E": [2.62, 2.77]}}',
            '{"not_identified": {"x": "at a bound"}, "intervals": {"E": [2.66, 2.77]}}',
            True,
        ),
        (
            '{"not_identified": {}, "intervals": {"E": [2.62, 2.77]}}',
            '{"not_identified": {}, "intervals": {"E": [2.66, 2.77]}}',
            False,
        ),
        ('{"a": 1', '{"a": 1}', False),
    ],
)
def test_json_says_the_same_but_for_last_digits(old, new, same):
    assert same_json(old, new) is same


def test_text_says_the_same_but_for_last_digits():
    row = "s-mu2-1234e567,4.2e+18,3.12345,0.5,\n"
    assert same_text(row, row.replace("3.12345", "3.12346").replace("0.5", "0.500001"))
    assert not same_text(row, row.replace("3.12345", "3.1238"))
    assert not same_text(row, row.replace("4.2e", "4.3e"))
    assert not same_text(row, row.replace("1234e567", "1235e567"))
    assert not same_text(row, row + row)


def test_a_file_is_left_alone_until_it_says_something_else(tmp_path):
    path = tmp_path / "a.csv"
    assert write_result(path, "x\n1.23456\n")
    assert not write_result(path, "x\n1.23457\n")
    assert path.read_text() == "x\n1.23456\n"
    assert write_result(path, "x\n1.24\n")
    assert path.read_text() == "x\n1.24\n"
    assert list(tmp_path.iterdir()) == [path]


ELSEWHERE = """
import sys
from tests.analysis import test_result_files
sys.stdout.write(test_result_files.laws())
"""


def laws():
    runs, depths = study(budgets=INSIDE[:3], noise_nats=0.002, replicates=((0, 1),))
    return fit(runs, depths.iloc[:0], FitConfig(bootstrap=100, validation=False)).to_json()


def test_laws_say_the_same_under_another_instruction_set():
    """The oldest that the libraries know sums in another order than any of today."""
    older = {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE],
        env={**os.environ, **older},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout)["groups"]) == 1
    assert same_json(laws(), done.stdout)
