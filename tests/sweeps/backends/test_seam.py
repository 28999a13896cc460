"""Schedulers stay behind `sweeps.backends`: no other module names one, its states or its commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.config_validation import ConfigError
from sweeps.backends.base import JobElement, JobState
from sweeps.backends.registry import open_backend
from sweeps.backends.slurm import states
from sweeps.config.cluster import BACKENDS, ClusterConfig, RetryConfig

ROOT = Path(__file__).resolve().parents[3]
OWN = ROOT / "sweeps" / "backends" / "slurm"
PATHS = [
    path
    for room in ("sweeps", "harness", "model", "analysis")
    for path in (ROOT / room).rglob("*.py")
    if not path.is_relative_to(OWN)
] + [ROOT / "loopscale.py"]
NATIVE = "|".join(states.STATES)
FORBIDDEN = {
    "the scheduler's name": r"SLURM|Slurm\b|\bsqueue|\bsacct|\bsbatch|\bscontrol|\bscancel",
    "its states": rf"[\"']({NATIVE})[\"']",
    "its variables": r"SLURM_",
    "a branch on the kind of cluster": r"cluster\.kind *(==|!=|in|not)|kind *[!=]= *[\"'](slurm|local|fake)",
    "an import past the registry": r"(import|from) +sweeps\.backends\.slurm",
}
REGISTRY = '    "slurm": "sweeps.backends.slurm.cluster:Slurm",\n'


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_other_module_knows_the_scheduler(what):
    hits = []
    for path in PATHS:
        text = path.read_text().replace(REGISTRY, "")
        hits += [f"{path.relative_to(ROOT)}: {match[0]}" for match in re.finditer(FORBIDDEN[what], text)]
    assert hits == []


def test_every_backend_opens_without_its_cluster_or_submitit():
    code = (
        "import sys\n"
        "from sweeps.backends.registry import open_backend\n"
        "from sweeps.config.cluster import BACKENDS, ClusterConfig\n"
        "shown = [open_backend(ClusterConfig(kind=kind)).display_name for kind in BACKENDS]\n"
        "assert all(shown) and not {'submitit', 'torch', 'pandas'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"cluster\.kind=slrm is not known \(did you mean slurm\?\)"):
        ClusterConfig(kind="slrm")
    assert [open_backend(ClusterConfig(kind=kind)).name for kind in ("local", "fake")] == ["local", "fake"]
    assert set(BACKENDS) == {"local", "slurm", "fake"}


def test_every_neutral_state_is_live_stuck_or_ended_with_a_known_failure_class():
    classes = {"": None} | vars(RetryConfig())
    for state in JobState:
        element = JobElement(state=state)
        assert not (element.is_live and element.is_stuck)
        assert element.failure_class in classes and element.shown_state
    assert set(states.STATES.values()) | {JobState.FAILED} == set(JobState) - {
        JobState.UNSTARTABLE,
        JobState.ORPHANED,
        JobState.FORGOTTEN,
        JobState.UNKNOWN,
    }
