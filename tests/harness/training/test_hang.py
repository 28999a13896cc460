"""A step that never ends: the process says where it hangs, ends, and the run resumes to the same bits."""

import os
import signal
import time

import pytest

from harness.training import hang
from harness.training.hang import HangWatch
from tests.harness.processes import join, let_go, run_together, start, wait_for_hold
from tests.harness.runs import assert_same_bits
from tests.waiting import wait_for
from tests.workers import in_processes


def test_steps_of_any_even_length_are_no_hang():
    said = []
    with HangWatch(0.2, said.append) as watch:
        for _ in range(5):
            time.sleep(0.05)
            watch.beat()
    assert not said and watch.limit_s >= 0.2


def test_a_step_much_longer_than_the_others_is_a_hang():
    said = []
    with HangWatch(0.1, said.append) as watch:
        watch.beat()
        wait_for(lambda: said, what="for the watch to notice")
    assert said[0].startswith("no step within ") and said[0].endswith("after 1 steps of this attempt")


def test_the_limit_follows_the_median_step():
    watch = HangWatch(10.0, lambda reason: None)
    assert watch.limit_s == hang.TIMES_FIRST * 10.0
    for idle in (1.0, 2.0, 100.0):
        watch._idle_s = idle
        watch.beat()
    assert watch.limit_s == hang.TIMES_MEDIAN * 2.0


def test_time_in_which_the_process_is_stopped_does_not_count(monkeypatch):
    clock = iter([0.0, 1.0, 5000.0, 5001.0])
    watch = HangWatch(10.0, pytest.fail)
    waits = iter([False, False, False, True])
    monkeypatch.setattr(watch._ended, "wait", lambda seconds: next(waits))
    monkeypatch.setattr(hang.time, "monotonic", lambda: next(clock))
    watch._watch()
    assert watch._idle_s == 1.0 + 2.0 + 1.0


@in_processes
def test_a_process_waits_for_another_one_no_longer_than_the_run_says(make, cache):
    settings = ("steps=16", "training.batch_sequences=4", "guardrails.peer_timeout_s=3")
    folder, _ = make(*settings)
    processes = start(2, [folder.path], cache, hold_at=5)
    wait_for_hold(folder.path, 5)
    os.kill(processes[1].pid, signal.SIGSTOP)
    let_go(folder.path)
    processes[0].join(timeout=240)
    assert processes[0].exitcode == 0
    processes[1].kill()
    join(processes)
    assert str(folder.status()) == "failed:node_failure"
    assert "timed out" in folder.status().message.lower()


@in_processes
def test_a_stopped_process_is_named_a_hang_by_the_others_and_the_run_resumes(make, cache):
    settings = ("steps=16", "training.batch_sequences=4", "training.checkpoint_every_s=0.05")
    whole, _ = make(*settings, parent="whole")
    broken, _ = make(*settings, "guardrails.hang_s=3", parent="broken")
    processes = start(2, [broken.path], cache, hold_at=5)
    wait_for_hold(broken.path, 5)
    os.kill(processes[1].pid, signal.SIGSTOP)
    let_go(broken.path)
    processes[0].join(timeout=240)
    assert processes[0].exitcode == hang.EXIT_CODE
    processes[1].kill()
    join(processes)
    assert str(broken.status()) == "failed:hang"
    assert "process 0: no step within " in broken.status().message
    (stacks,) = broken.path.glob("logs/hang_1_process_0.txt")
    assert "_take_steps" in stacks.read_text()
    run_together(2, [whole.path, broken.path], cache)
    assert_same_bits(whole, broken)
