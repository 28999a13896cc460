"""Fitted studies that all tests only read; a test that asks for one belongs to the xdist group "study"."""

from __future__ import annotations

import pytest

from analysis import FitConfig, StudyFit, fit
from tests.analysis.synthetic import INSIDE, PAPER_GRID, study

QUICK = FitConfig(bootstrap=100, validation=False)


@pytest.fixture(scope="session")
def noisy():
    """The tables of five budgets with noise of 0.002 nats and two cells of three seeds."""
    return study(noise_nats=0.002, replicates=((0, 1), (3, 2)), seed=1)


@pytest.fixture(scope="session")
def fitted(noisy) -> StudyFit:
    """Everything that `fit` does, with intervals from 200 resamples."""
    return fit(*noisy, FitConfig(bootstrap=200))


@pytest.fixture(scope="session")
def clean() -> StudyFit:
    """The paper's six budgets without noise; the optimum of the last lies above its grid."""
    return fit(*study(budgets=PAPER_GRID), QUICK)


@pytest.fixture(scope="session")
def two_budgets() -> StudyFit:
    """Too few budgets for a law."""
    return fit(*study(budgets=INSIDE[1:3]), QUICK)
