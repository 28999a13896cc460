"""What the code did before: plans, data sets, trained bits and comparisons, pinned in tests/golden.

`python -m tests.golden.make` writes the files anew, for a change that is meant to change them.
"""

from __future__ import annotations

import json
import platform
import shutil
from importlib.metadata import version

import pytest

import loopscale
from tests.golden import cases
from tests.golden.cases import GOLDEN, OLD, same
from tests.test_study import GRIDS, STUDY

# MKL's square root, which torch.sqrt calls, is not rounded alike on all processors: on an AMD EPYC 1,937 of
# 10,000 differ from IEEE 754. So there are two results, both of the code before it was moved.
DATA, PLANS, BITS, APPROXIMATE = (
    json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("data", "plans", "bits", "bits_approximate_sqrt")
)
NAMED = {"looped": cases.LOOPED, "control": cases.CONTROL, "other": cases.OTHER}
one_worker = pytest.mark.xdist_group("golden bits")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    cases.write_corpora(folder)
    return folder


@pytest.fixture(scope="module")
def data(corpora):
    """Overrides: the small data set, prepared."""
    overrides = cases.corpus_data(corpora, corpora / "cache")
    cases.prepared(overrides)
    return overrides


@pytest.fixture(scope="module")
def trained(corpora, data):
    """The results of the golden runs and of the old interrupted one, resumed, by name."""
    root, old = corpora / "runs", corpora / "old"
    shutil.copytree(OLD, old)
    interrupted = cases.interrupted_run(old)
    commands = [[*data, f"root={root}", *run] for run in NAMED.values()]
    resume = [f"run={interrupted}", f"root={old / 'runs'}", f"cache={old / 'cache'}"]
    records = cases.train_fixed([*commands, resume])
    runs = [*(root / "single" / record["run_id"] for record in records[:-1]), interrupted]
    return dict(zip([*NAMED, "interrupted"], map(cases.results, runs), strict=True))


def test_data_sets_keep_their_digests(corpora, tmp_path):
    assert cases.digests(corpora, tmp_path) == DATA


@pytest.mark.parametrize("sweep", PLANS["planned"])
def test_a_shipped_sweep_plans_the_same_runs_and_trunks(sweep, data):
    found, pinned = cases.planned(sweep, data), PLANS["planned"][sweep]
    assert found["runs"] == pinned["runs"]
    for name in ("nominal_flops", "expected_flops"):
        assert found[name] == pytest.approx(pinned[name], rel=1e-9)


@pytest.mark.parametrize("sweep", PLANS["entered"])
def test_a_launch_enters_the_same_runs_and_segments(sweep, data, tmp_path):
    assert cases.segments(sweep, data, tmp_path) == PLANS["entered"][sweep]


@one_worker
@pytest.mark.parametrize("run", NAMED)
def test_a_short_run_has_the_same_losses_to_five_digits(run, trained):
    """With another instruction set too: 30 steps do not amplify its rounding beyond that."""
    assert same(without_bits(trained[run]), without_bits(BITS["runs"][run]))


@one_worker
def test_the_interrupted_run_resumes_to_about_the_same_loss(trained):
    """Over 200 steps the rounding of another instruction set grows to 0.2 % of the loss."""
    found, pinned = trained["interrupted"], BITS["runs"]["interrupted"]
    assert (found["run_id"], found["checkpoint"]) == (pinned["run_id"], pinned["checkpoint"])
    assert found["record"]["executed_flops"] == pinned["record"]["executed_flops"]
    assert found["record"]["val_loss_nats"] == pytest.approx(pinned["record"]["val_loss_nats"], rel=1e-2)


def without_bits(found):
    """Leave out what no rounding is allowed in."""
    return {key: value for key, value in found.items() if key not in ("model", "optimizer")}


@one_worker
@pytest.mark.skipif(
    platform.machine() != "x86_64" or version("torch").partition("+")[0] != BITS["torch"],
    reason=f"the bits are those of torch {BITS['torch']} on x86-64",
)
@pytest.mark.parametrize("run", BITS["runs"])
def test_a_run_has_the_same_bits(run, trained):
    """With the instruction set fixed; the interrupted run, trained before, goes on from its checkpoint."""
    assert trained[run] in (BITS["runs"][run], APPROXIMATE["runs"][run])


@pytest.mark.parametrize("grid", GRIDS)
def test_the_comparison_of_a_grid_comes_out_of_its_tables(grid):
    found = json.loads(loopscale.compare([f"data={STUDY / grid}"]).to_json())
    written = json.loads((STUDY / grid / "comparison.json").read_text(encoding="utf-8"))
    assert same(found, written)
    assert not same(found | {"confidence": 0.9}, written)
