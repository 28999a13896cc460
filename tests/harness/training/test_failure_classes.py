"""Every class of failure that one run can meet, provoked, and named by its status.json."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from harness.storage.files import write_json
from harness.training.job import JOB_END, run_job
from harness.training.step import GradientOfStep
from model.config_validation import ConfigError
from tests.harness.processes import CONTEXT, join, let_go, start_held, wait_for_hold
from tests.harness.runs import assert_same_bits
from tests.workers import in_processes

pytestmark = in_processes


def named(folder):
    status = json.loads((folder.path / "status.json").read_text())
    assert "\n" not in status["message"]
    return status["state"], status["failure_class"]


def _run_with_little_memory(path: Path, cache: Path, spare_bytes: int) -> None:
    import harness.training.job  # what it maps into memory is not to count

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    harness.training.job.run_job(path, cache)


def test_oom(make, cache):
    big = (
        "steps=5",
        "training.batch_sequences=16384",
        "training.micro_batch=16384",
        "training.max_epochs=1000",
    )
    folder, _ = make(*big)
    child = CONTEXT.Process(target=_run_with_little_memory, args=(folder.path, cache, 2**29))
    child.start()
    join([child])
    assert named(folder) == ("failed", "oom")


def test_a_gpu_that_torch_cannot_use_is_a_fault_of_the_node(make, cache, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    folder, _ = make("steps=5")
    run_job(folder.path, cache)
    assert named(folder) == ("failed", "node_failure")
    assert (
        "CUDA_VISIBLE_DEVICES=0" in folder.status().message
        and "training.device=cpu" in folder.status().message
    )
    for none in ("", "NoDevFiles"):  # the latter is what SLURM sets for a job without GPUs
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert run_job(folder.path, cache) == "done"


@pytest.fixture(scope="module")
def whole(make_in, tmp_path_factory, cache):
    """A run of 30 steps that nothing has interrupted."""
    folder, _ = make_in(tmp_path_factory.mktemp("whole"), "steps=30")
    assert run_job(folder.path, cache) == "done"
    return folder


@pytest.mark.parametrize(
    ("number", "state", "failure_class"),
    [
        (signal.SIGTERM, "submitted", "preempted"),
        (signal.SIGUSR2, "submitted", "timeout"),
        (signal.SIGINT, "submitted", ""),
        (signal.SIGKILL, "running", ""),
    ],
)
def test_preempted_timeout_interrupted_and_lost(make, whole, cache, number, state, failure_class):
    folder, _ = make("steps=30", "training.checkpoint_every_s=0.02", parent="signalled")
    moments = (5, 12, 20) if number == signal.SIGKILL else (5,)
    for step in moments:
        child = start_held(folder.path, cache, step)
        wait_for_hold(folder.path, step)
        os.kill(child.pid, number)
        let_go(folder.path)
        join([child])
    assert named(folder) == (state, failure_class)
    assert run_job(folder.path, cache) == "done"
    # A process that was killed could not say so; the next attempt does.
    expected = "lost" if number == signal.SIGKILL else failure_class
    assert folder.status().ended_before == expected and folder.status().attempts == len(moments) + 1
    assert_same_bits(whole, folder)


def test_a_signal_long_before_the_time_limit_is_preemption(make, cache, monkeypatch):
    monkeypatch.setenv(JOB_END, str(int(time.time()) + 36000))
    folder, _ = make("steps=5")
    assert run_job(folder.path, cache, watch=lambda line: os.kill(os.getpid(), signal.SIGUSR2)) == "submitted"
    assert named(folder) == ("submitted", "preempted")


def test_diverged_after_too_many_skipped_steps_and_not_after_one(make, cache, monkeypatch):
    accumulate = GradientOfStep._accumulate
    bad_steps = {3}

    def poisoned(self, draws, *batch):
        result = accumulate(self, draws, *batch)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls in bad_steps:
            next(self._replica.model.parameters()).grad.fill_(float("inf"))
        return result

    monkeypatch.setattr(GradientOfStep, "_accumulate", poisoned)
    once, _ = make("steps=20", parent="once")
    assert run_job(once.path, cache) == "done"
    assert once.record()["skipped_steps"] == 1
    lines = read_metrics(once.metrics)
    assert lines[2]["gradient_norm"] is None and lines[-1]["skipped_steps"] == 1
    bad_steps.update(range(5, 9))
    often, _ = make("steps=20", "guardrails.max_skipped_steps=4", parent="often")
    assert run_job(often.path, cache) == "failed:diverged"
    assert named(often) == ("failed", "diverged")
    assert "at step 8" in often.status().message


def test_a_loss_that_rises_is_divergence_too(make, cache):
    folder, _ = make(
        "steps=60",
        "optimizer=adamw",
        "optimizer.adamw_learning_rate=20",
        "guardrails.average_steps=2",
        "guardrails.max_rise_nats=0.5",
    )
    run_job(folder.path, cache)
    assert named(folder) == ("failed", "diverged")
    assert "guardrails.max_rise_nats=0.5" in folder.status().message


def test_bad_config_and_code_error(make, cache, monkeypatch):
    folder, _ = make("steps=5", "training.device=cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run_job(folder.path, cache)
    assert named(folder) == ("failed", "bad_config")
    assert "training.device=cuda: no GPU is visible here" in folder.status().message
    broken, _ = make("steps=5", parent="broken")
    monkeypatch.setattr("harness.training.train.draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_job(broken.path, cache)
    assert named(broken) == ("failed", "code_error")
    assert "1 / 0" in (broken.path / "logs" / "error_1.txt").read_text()


@pytest.mark.parametrize(
    ("number", "failure_class"),
    [(errno.EIO, "lost"), (errno.ESTALE, "lost"), (errno.ENOSPC, "lost"), (errno.EACCES, "code_error")],
)
def test_an_error_of_the_file_system_is_worth_another_attempt(
    make, cache, monkeypatch, number, failure_class
):
    folder, _ = make("steps=2", parent=str(number))

    def fails(*_):
        raise OSError(number, os.strerror(number), "metrics.jsonl")

    monkeypatch.setattr("harness.training.train.draw", fails)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        run_job(folder.path, cache)
    assert folder.status().failure_class == failure_class and "metrics.jsonl" in folder.status().message


def test_a_full_disk_is_named_with_what_was_being_written(make, cache, monkeypatch, tmp_path):
    """The kernel does not say which file it was, nor does safetensors."""
    folder, _ = make("steps=2", parent="full")

    def fails(*_):
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("harness.training.train.draw", fails)
    with pytest.raises(RuntimeError):
        run_job(folder.path, cache)
    assert named(folder) == ("failed", "lost") and str(folder.path) in folder.status().message

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("harness.storage.files.os.write", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*new\.json'"):
        write_json(tmp_path / "new.json", {})
    assert not list(tmp_path.glob(".new.json*")), "no torn file stays behind"


def test_a_run_whose_folder_is_renamed_stops_and_makes_no_other(make, whole, cache):
    folder, _ = make("steps=30", "training.checkpoint_every_s=0.02", parent="before")
    before, after = folder.path.parent, folder.path.parent.with_name("after")

    def rename(line):
        if line.get("step") == 10:
            before.rename(after)

    with pytest.raises(ConfigError, match="is gone, it was renamed or deleted while its run was trained"):
        run_job(folder.path, cache, watch=rename)
    assert not before.exists()
    moved = RunFolder(after / folder.run_id)
    assert run_job(moved.path, cache) == "done" and moved.status().attempts == 2
    assert_same_bits(whole, moved)
