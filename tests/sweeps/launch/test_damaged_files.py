"""Damaged files of a sweep: what is whole goes on, and what is said helps."""

from __future__ import annotations

import pytest

from sweeps.backends.job_array import array_folder, read_arrays, read_submitted
from sweeps.launch.submit import submit_missing
from sweeps.state.status import status
from tests.sweeps.launch.conftest import run_dry


@pytest.mark.parametrize("name", ["status.json", "record.json"])
def test_a_damaged_run_is_passed_over_until_its_file_is_deleted(entered, name):
    folder, ledger, cluster = entered
    run = ledger.runs(folder)[3]
    submit_missing(folder, ledger, cluster)
    cluster.cancel(f"{element.job_id}_{index}" for (_, index), element in cluster.elements.items())
    run.ensure_created()
    (run.path / name).write_text('{"state": "plan')
    assert submit_missing(folder, ledger, cluster).runs == 199
    run_dry(cluster)
    state = status(folder)
    (note,) = state.notes
    assert note.startswith(f"{run.path / name} is damaged: ") and "delete it" in note
    assert state.rows[3]["status"] == "failed:unreadable"
    assert state.next_command([]).startswith("next: loopscale launch ")
    (run.path / name).unlink()
    if name == "record.json":
        assert "delete it and status.json" in note
        (run.path / "status.json").unlink()
    assert submit_missing(folder, ledger, cluster).runs == 1
    run_dry(cluster)
    assert {each.status().state for each in ledger.runs(folder)} == {"done"}


def test_a_damaged_answer_of_the_scheduler_is_asked_for_again(entered):
    folder, ledger, cluster = entered
    submit_missing(folder, ledger, cluster)
    (array,) = read_arrays(folder)
    answer = read_submitted(array_folder(folder, array))
    (array_folder(folder, array) / "job.json").write_text('{"clus')
    assert submit_missing(folder, ledger, cluster).runs == 0
    assert read_submitted(array_folder(folder, array)) == answer is not None
