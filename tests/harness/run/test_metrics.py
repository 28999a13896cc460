"""The metrics file of a run that is continued."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.run.metrics import MetricsLog, last_metrics, read_metrics


def lines(steps, **more):
    return "".join(json.dumps({"step": step, "train_loss_nats": 2.0, **more}) + "\n" for step in steps)


@given(
    st.lists(st.integers(1, 1000), unique=True).map(sorted),
    st.integers(0, 1000),
    st.sampled_from(["", '{"step": 99', "{"]),
)
def test_a_run_goes_on_after_the_line_of_its_checkpoint(tmp_path_factory, steps, checkpoint, torn):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_text(lines(steps) + torn)
    kept = [step for step in steps if step <= checkpoint]
    with MetricsLog(path, resume_step=checkpoint) as log:
        assert [line["step"] for line in read_metrics(path)] == kept
        log.write({"step": checkpoint + 1, "train_loss_nats": 2.0})
    assert path.read_text() == lines([*kept, checkpoint + 1])


@pytest.mark.parametrize("damage", ["", '{"step": null}\n', "\0\0\0\n[1]\n", '{"step": 4'])
def test_lines_lost_before_the_checkpoint_are_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines([2]) + damage)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: the lines of steps 3 to 6 are missing"):
        log = MetricsLog(path, resume_step=7, every=2)
    with log:
        log.write({"step": 8, "train_loss_nats": 2.0})
    assert path.read_text() == lines([2, 8])


@pytest.mark.parametrize("before", ["", None])
def test_a_run_that_has_none_begins(tmp_path, before):
    path = tmp_path / "metrics.jsonl"
    if before is not None:
        path.write_text(before)
    with MetricsLog(path, resume_step=0) as log:
        log.write({"step": 1})
    assert last_metrics(path) == {"step": 1}


def test_a_long_file_is_cut_without_being_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(range(1, 50_001), note="x" * 60))
    tracemalloc.start()
    with MetricsLog(path, resume_step=49_990):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last_metrics(path)["step"] == 49_990
    assert peak < 100_000 < path.stat().st_size / 10
