"""One run, several processes: the same losses, the same bits after a kill, whoever starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

import loopscale
from harness.distributed.rendezvous import job_port
from harness.run.metrics import last_metrics, read_metrics
from harness.training import micro_batch
from harness.training.checkpoint import checkpoint_folders
from harness.training.job import run_job
from model.transformer import LoopedTransformer
from tests.harness.processes import join, let_go, run_together, start, wait_for_hold
from tests.harness.runs import assert_same_bits
from tests.workers import in_processes

pytestmark = in_processes
STEPS = ("steps=50", "training.batch_sequences=8", "model.mean_recurrence=3", "evaluation.batch_blocks=3")


def losses(folder):
    return [line["train_loss_nats"] for line in read_metrics(folder.metrics)]


@pytest.fixture(scope="module")
def alone(make_in, tmp_path_factory, cache):
    """A run of one process."""
    folder, _ = make_in(tmp_path_factory.mktemp("alone"), *STEPS)
    assert run_job(folder.path, cache) == "done"
    return folder


@pytest.mark.parametrize(
    ("world", "ways"),
    [(2, [("ddp", 4), ("fsdp", 1)]), (4, [("ddp", 1), ("fsdp", 2)])],
)
def test_processes_and_micro_batches_change_nothing_but_rounding(make, alone, cache, world, ways):
    folders = [
        make(*STEPS, f"training.parallel={way}", f"training.micro_batch={size}", parent=f"{way}{size}")[0]
        for way, size in ways
    ]
    run_together(world, [folder.path for folder in folders], cache)
    for folder in folders:
        assert folder.run_id == alone.run_id
        assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
        ours, theirs = folder.record(), alone.record()
        assert ours["val_loss_nats"] == pytest.approx(theirs["val_loss_nats"], rel=1e-4)
        # The processes share the evaluation, whose losses are those of one that computes it alone.
        again = loopscale.evaluate([f"run={folder.path}", f"cache={cache}"])
        assert again.loss_nats[2] == ours["val_loss_nats"]
        assert ours["executed_flops"] == theirs["executed_flops"]
        assert ours["devices"] == world and ours["device_s"] >= world * 0.99 * ours["wall_s"] > 0
        norms = [read_metrics(run.metrics)[0]["gradient_norm_core"] for run in (folder, alone)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_in_bfloat16_processes_change_nothing_but_rounding(make, cache):
    settings = (
        "steps=6",
        "training.batch_sequences=4",
        "model.mean_recurrence=4",
        "training.precision=bfloat16",
    )
    alone, *shared = (
        make(*settings, f"training.parallel={way}", parent=parent)[0]
        for parent, way in (("alone", "ddp"), ("ddp", "ddp"), ("fsdp", "fsdp"))
    )
    assert run_job(alone.path, cache) == "done"
    run_together(2, [folder.path for folder in shared], cache)
    for folder in shared:
        assert folder.run_id == alone.run_id
        assert losses(folder) == pytest.approx(losses(alone), rel=2e-3)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_lost_process_is_named_and_the_run_resumes_to_the_same_bits(make, cache, way):
    # Three, because two numbers have the same sum in any order.
    settings = ("steps=20", "training.batch_sequences=6", "training.checkpoint_every_s=0.05")
    settings += (f"training.parallel={way}",)
    whole, _ = make(*settings, parent="whole")
    broken, _ = make(*settings, parent="broken")
    processes = start(3, [broken.path], cache, hold_at=5)
    wait_for_hold(broken.path, 5)
    processes[1].kill()
    let_go(broken.path)
    assert join(processes) == [0, -signal.SIGKILL, 0]
    assert str(broken.status()) == "failed:node_failure"
    # Now one of them is asked to stop, and all do.
    reached = last_metrics(broken.metrics)["step"]
    processes = start(3, [broken.path], cache, hold_at=reached + 5)
    wait_for_hold(broken.path, reached + 5)
    os.kill(processes[1].pid, signal.SIGTERM)
    let_go(broken.path)
    assert join(processes) == [0] * 3
    status = broken.status()
    assert status.state == "submitted" and status.failure_class == "preempted"
    assert status.ended_before == "node_failure"
    assert len(list(checkpoint_folders(broken.checkpoints)[-1].glob("optimizer_*_of_00003.safetensors"))) == 3
    run_together(3, [broken.path, whole.path], cache)
    assert_same_bits(whole, broken)


def full_on_the_second(rank):
    """Let the second process run out of memory, as on a GPU, with more than two sequences."""
    loss = LoopedTransformer.loss

    def failing(self, tokens, *inputs, **options):
        if rank == 1 and len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, tokens, *inputs, **options)

    LoopedTransformer.loss = failing
    micro_batch._is_tried = lambda device: True


def test_a_process_that_runs_out_of_memory_in_the_search_leaves_gradients_right(make, cache):
    settings = ("steps=6", "training.batch_sequences=8", "model.mean_recurrence=3")
    runs = [make(*settings, f"training.parallel={way}", parent=way)[0] for way in ("ddp", "fsdp")]
    alone, _ = make(*settings, parent="alone")
    processes = start(2, [run.path for run in runs], cache, prepare=full_on_the_second)
    run_job(alone.path, cache)
    assert join(processes) == [0, 0]
    for run in runs:
        assert run.micro_batch() == 2
        for name in ("train_loss_nats", "gradient_norm"):
            ours, theirs = ([line[name] for line in read_metrics(each.metrics)] for each in (run, alone))
            assert ours == pytest.approx(theirs, rel=1e-4), name


def test_a_run_goes_on_with_another_number_of_processes(make, cache):
    settings = ("steps=16", "training.parallel=fsdp")
    alone, _ = make(*settings, parent="alone")
    changed, _ = make(*settings, "training.checkpoint_every_s=0.05", parent="changed")
    run_job(alone.path, cache)
    processes = start(2, [changed.path], cache, hold_at=5)
    wait_for_hold(changed.path, 5)
    os.kill(processes[0].pid, signal.SIGUSR2)
    let_go(changed.path)
    assert join(processes) == [0] * 2
    assert changed.status().failure_class == "timeout"
    assert run_job(changed.path, cache) == "done"
    assert losses(changed) == pytest.approx(losses(alone), rel=1e-5)


def test_torchrun_and_submitit_start_the_same_run(tiny, tmp_path):
    import submitit

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = [*tiny, "steps=10", "training.batch_sequences=4", "training.parallel=fsdp"]
    by_torchrun = subprocess.run(
        [*command, "-m", "loopscale", "train", *settings, "format=json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert by_torchrun.returncode == 0, by_torchrun.stderr[-2000:]
    record = json.loads(by_torchrun.stdout)  # of one process alone
    assert record["devices"] == 2 and record["status"] == "done"
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    again = [*settings, f"root={tmp_path / 'submitted'}"]
    records = executor.submit(loopscale.train, again).results()
    assert [row["run_id"] for row in records] == [record["run_id"]] * 2
    assert records[0]["devices"] == 2 and records[0]["val_loss_nats"] == record["val_loss_nats"]


def test_jobs_meet_at_ports_that_no_outgoing_connection_is_given():
    ports = [job_port(str(job)) for job in range(1000)]
    assert max(ports) < 32768 and min(ports) >= 1024, "Linux's default; see ip(7), ip_local_port_range"
    assert ports == [job_port(str(job)) for job in range(1000)]
    assert len(set(ports)) > 900


def test_a_batch_that_does_not_divide_is_bad_config(make, cache):
    folder, _ = make("steps=5", "training.batch_sequences=3", "training.micro_batch=1")
    run_together(2, [folder.path], cache)
    assert str(folder.status()) == "failed:bad_config"
    assert re.search(r"batch_sequences=3 does not divide over 2 processes", folder.status().message)
