"""Sweeps on a real cluster from plan to table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import loopscale
from sweeps.backends.job_array import read_array
from sweeps.launch.code_snapshot import SOURCES
from sweeps.state.ended_jobs import attempts_of

from .conftest import EVENT, ROOT, eventually, fault, slurm


@pytest.mark.alone
def test_a_sweep_of_24_cells_over_4_nodes_with_one_array_per_shape(sweep):
    made = sweep(
        "grid", "sweep.scales=[looped_40k,looped_90k]", "sweep.mean_recurrences=[2,4]", "sweep.seeds=[0,1]",
        "sweep.tokens=[640,768]", "sweep.trunk=false", "cluster.resources.runs_per_job=3",
        "cluster.resources.cpus_per_task=4",
        "cluster.per_scale={looped_90k: {memory_gb: 2, parallel_runs: 3}}",
    )  # fmt: skip
    frame = made.launch()
    assert len(frame) == 24 and set(frame["status"]) <= {"submitted", "running"}
    assert len(made.batches()) == 2
    made.finish(again=False)
    runs, depths = loopscale.collect([f"root={made.root}", "sweep=grid"])
    assert len(runs) == 24 and (runs["status"] == "done").all() and (runs["attempts"] == 1).all()
    assert runs["val_loss_nats"].notna().all() and len(depths) == 24 * 4
    assert len({place["node"] for run in made.runs() for place in attempts_of(run)}) == 4
    elements = [read_array(path.parent).elements for path in made.batches()]
    assert [len(each) for each in elements] == [4, 4] and all(len(e) == 3 for each in elements for e in each)
    assert runs["code_version"].str.startswith("0.1.0").all()
    assert (json.loads((made.batches()[0].parent / "environment.json").read_text()))["packages"]["submitit"]


def test_a_failing_training_function_is_named_and_not_repeated(sweep):
    made = sweep("broken", *EVENT, fault("error"))
    made.launch()
    made.wait_until_idle()
    frame = made.status()
    assert set(frame["status"]) == {"failed:code_error"}
    assert set(frame["message"]) == {"the training function is broken"}
    names = {read_array(path.parent).name for path in made.batches()}
    listing = ("sacct", "-nXP", f"--name={','.join(names)}", "-o", "State")
    eventually(lambda: slurm(*listing).split(), ["FAILED", "FAILED"])
    made.launch()
    assert made.queue() == [] and len(made.batches()) == 1
    command = [f"root={made.root}", "sweep=broken", f"run={made.run().run_id}"]
    shown = subprocess.run(
        [sys.executable, "-m", "loopscale", "status", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert "ZeroDivisionError: the training function is broken" in shown.stdout
    assert "loopscale train run=" in shown.stdout
    assert loopscale.retry([*command[:2], "failed=true"]) == [run.run_id for run in made.runs()]
    made.wait_until_idle()
    assert [run.status().attempts for run in made.runs()] == [2, 2]


def test_a_qos_takes_as_many_jobs_as_it_allows(sweep):
    """As accounting tells beforehand, and as the controller answers where the profile says more."""
    own = ["cluster.resources.qos=narrow", "cluster.resources.account=project"]
    made = sweep("narrow", *EVENT, "sweep.seeds=[0,1,2]", "sweep.tokens=[640]", *own)
    with pytest.warns(UserWarning, match="1 run is not submitted yet, launch again submits them"):
        made.launch()
    made.wait_until_idle()
    made.finish()
    assert [run.status().attempts for run in made.runs()] == [1, 1, 1]
    more = sweep("refused", *EVENT, "sweep.seeds=[3,4,5]", "sweep.tokens=[640]", *own)
    with pytest.warns(UserWarning, match="runs are not submitted yet.*QOSMaxSubmitJobPerUserLimit"):
        more.launch("cluster.max_queued=100")
    more.finish()
    assert [run.status().attempts for run in more.runs()] == [1, 1, 1]


def test_a_job_needs_no_network(sweep, calm):
    python = f"unshare --net -- {sys.executable}"
    made = sweep("offline", *EVENT, f"cluster.python='{python}'")
    made.launch()
    made.finish(again=False)
    assert made.losses() == calm


def test_editing_the_checkout_does_not_change_a_queued_run(sweep, calm, tmp_path):
    checkout = tmp_path / "checkout"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(ROOT / name, checkout / name)
    made = sweep("snapshot", *EVENT, "cluster.resources.options={hold: true}")
    subprocess.run([sys.executable, "-m", "loopscale", "launch", *made.overrides], cwd=checkout, check=True)
    trainer = Path("harness", "training", "train.py")
    (checkout / trainer).write_text("raise RuntimeError('the edited checkout')\n")
    slurm("scontrol", "release", made.element().partition("_")[0])
    made.finish(again=False)
    batch = read_array(made.batches()[0].parent)
    code = made.folder / batch.snapshot
    assert (code / trainer).read_text() == (ROOT / trainer).read_text()
    assert made.losses() == calm


def test_runs_that_share_a_job_have_a_gpu_each(sweep, calm):
    packed = ["cluster.resources.gpus_per_node=2", "cluster.resources.runs_per_job=2"]
    # The nodes have GPUs in name alone.
    made = sweep("packed", *EVENT, *packed, "cluster.resources.parallel_runs=2", "training.device=cpu")
    made.launch()
    made.finish(again=False)
    places = [attempts_of(run)[0] for run in made.runs()]
    assert {place["gpus"] for place in places} == {"0", "1"} and len({place["job"] for place in places}) == 1
    assert made.losses() == calm


def test_a_dry_run_prints_the_file_that_the_launch_submits(sweep):
    made = sweep("dry", *EVENT)
    made.launch("sweep.seeds=[7]")  # prepares the data
    made.wait_until_idle()
    command = [sys.executable, "-m", "loopscale", "launch", *made.overrides, "dry_run=true"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before = set(made.batches())
    made.launch()
    (batch,) = set(made.batches()) - before
    (file,) = batch.parent.glob("*_submission.sh")
    assert file.read_text() in shown and str(batch.parent) in shown
