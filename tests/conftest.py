"""A small corpus and the overrides of a run that trains in a second."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

import loopscale
from harness.storage.files import exclusive, new_folder
from sweeps.config.study import StudyConfig

# One thread in each of several processes, and none that spins while it waits; torch reads both when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A deadline would make a test's result depend on how busy the machine is.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

WORDS = [
    f"{a}{b}{c}" for a in ("lo", "ra", "ti", "mu", "se") for b in ("n", "r", "st") for c in ("a", "o", "ing")
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder of 60 small text files in which every word depends on the one before."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def write_corpus(folder: Path) -> Path:
    """Write those files into `folder` and return it."""
    for number in range(60):
        draw = random.Random(number)
        at, words = draw.randrange(len(WORDS)), []
        for _ in range(400):
            at = (at * 7 + draw.randrange(3)) % len(WORDS)
            words.append(WORDS[at])
        (folder / f"{number:02}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_run(corpus, cache) -> list[str]:
    """Overrides: a looped model of width 32 on the small corpus."""
    return [
        f"cache={cache}",
        "data=text",
        f"path={corpus}",
        "data.vocabulary_size=300",
        "data.validation_fraction=0.2",
        "model=looped_40k",
        "model.mean_recurrence=2",
        "model.sequence_length=32",
        "training.batch_sequences=4",
        "training.threads=1",
        "training.log_every=1",
        "evaluation.blocks=8",
        "evaluation.max_depth=4",
    ]


@pytest.fixture
def tiny(tiny_run, tmp_path) -> list[str]:
    """Overrides: that run, everything below tmp_path."""
    return [f"root={tmp_path / 'runs'}", *tiny_run]


TINY_SWEEP = [
    "sweep.name=tiny",
    "sweep.mean_recurrences=[2,4]",
    "sweep.tokens=[1280,2560]",
    "sweep.min_steps=5",
    "cluster.parallel_runs=1",  # every worker imports torch
    "confirm=false",
]


@pytest.fixture
def tiny_sweep(tiny) -> list[str]:
    """Overrides: a sweep of two recurrences and the control at two lengths of those runs."""
    return [*tiny, *TINY_SWEEP]


@pytest.fixture(scope="session")
def composed():
    """A function that composes each list of overrides once and returns the study with changed fields.

    Hydra takes a fifth of a second each time.
    """
    once = functools.cache(loopscale.compose)

    def study(overrides: Sequence[str], **changes: object) -> StudyConfig:
        return dataclasses.replace(once(tuple(overrides)), **changes)

    return study


@pytest.fixture(scope="session")
def tiny_study_in(composed, tiny_run):
    """A function that returns the sweep `tiny` below a root, with further overrides, as a composed study."""
    return lambda root, *more: composed([*tiny_run, *TINY_SWEEP, *more], root=str(root))


@pytest.fixture
def tiny_study(tiny_study_in, tmp_path):
    """That function for the root of `tiny_sweep`."""
    return functools.partial(tiny_study_in, tmp_path / "runs")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function that fills a folder by `make(folder)` once for all processes of the tests and returns it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / name
        with exclusive(base / f"{name}.lock", wait=True):
            if not folder.exists():
                with new_folder(folder) as unfinished:
                    make(unfinished)
        return folder

    return folder_of


@pytest.fixture
def drawn_glyphs(monkeypatch):
    """PDF files whose glyphs are drawn: to embed the fonts takes two thirds of the time of a figure."""
    from analysis.figures import style

    monkeypatch.setitem(style.RC, "pdf.fonttype", 3)
