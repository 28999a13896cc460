"""A sweep remembers its cluster profile; a change of it is named, asked about or refused."""

from __future__ import annotations

import dataclasses

import pytest

import loopscale
from model.config_validation import ConfigError
from sweeps.backends.job_array import read_arrays
from sweeps.backends.local import LocalPool
from sweeps.backends.registry import open_backend
from sweeps.launch.submit import submit_missing
from sweeps.state.ledger import read_ledger
from sweeps.state.profile import study_of


def waiting(folder, state="PENDING|Priority||1:00"):
    """What squeue prints while all elements of the newest array are in that state."""
    array = read_arrays(folder)[-1]
    return "; ".join(f"echo '{array.name}|{index}|{state}|5'" for index in range(len(array.elements)))


def test_commands_without_a_cluster_use_the_one_of_the_launch(queued, commands):
    _, overrides = queued("cluster.resources.time_min=7", "cluster.array_parallelism=3")
    again = study_of([*overrides, "cluster.array_parallelism=4"])
    assert again.cluster.kind == "slurm" and again.cluster.resources.time_min == 7
    assert again.cluster.array_parallelism == 4, "the newest word of it"
    assert study_of([*overrides, "cluster=local"]).cluster.kind == "local"
    assert study_of([*overrides, "sweep.name=another"]).cluster.kind == "local", "the default"
    loopscale.launch([*overrides, "cluster.array_parallelism=4"])
    assert study_of(overrides).cluster.array_parallelism == 4


def test_the_ledger_of_an_earlier_version_names_the_cluster_too(queued, monkeypatch):
    folder, overrides = queued()
    old = dataclasses.replace(read_ledger(folder), profile=None)
    monkeypatch.setattr("sweeps.state.profile.read_ledger", lambda _: old)
    assert study_of(overrides).cluster == old.cluster and old.cluster.kind == "slurm"


def test_a_change_of_kind_is_refused_while_jobs_are_live(queued, commands, capsys):
    folder, overrides = queued()
    commands("squeue", waiting(folder))
    for what in ([*overrides, "cluster=local"], [*overrides, "cluster=local", "confirm=true"]):
        with pytest.raises(SystemExit):
            loopscale.main(["launch", *what])
        said = capsys.readouterr().err
        assert "launched on SLURM, where 2 jobs are queued or running (somewhere:5_0, somewhere:5_1)" in said
        assert "loopscale cancel sweep=queued" in said
    assert read_ledger(folder).cluster.kind == "slurm", "and the ledger is as it was"


def test_a_change_of_kind_is_asked_about_and_cancel_reaches_both_kinds(queued, commands, monkeypatch, capsys):
    folder, overrides = queued()
    local = [*overrides, "cluster=local"]
    with pytest.raises(SystemExit):
        loopscale.main(["launch", *local, "confirm=true"])
    said = capsys.readouterr().err
    assert "was launched on SLURM and goes on on the local pool" in said and "add confirm=false" in said
    started = []
    monkeypatch.setattr(LocalPool, "start_workers", lambda *_, **__: started)
    with pytest.warns(UserWarning, match="goes on on the local pool"):
        loopscale.launch(local)
    assert read_ledger(folder).cluster.kind == "local" and set(read_ledger(folder).earlier) == {"slurm"}
    commands("squeue", waiting(folder))  # submitted from elsewhere meanwhile
    asked = commands("scancel", "true")
    root = f"root={folder.parent}"
    assert len(loopscale.cancel([root, "sweep=queued"])) == 2 and asked() == ["scancel 5_0 5_1"]


def test_where_the_old_cluster_is_not_there_any_more_the_move_says_so(queued, monkeypatch, tmp_path):
    _, overrides = queued()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(LocalPool, "start_workers", lambda *_, **__: [])
    with pytest.warns(UserWarning, match="launched on SLURM, which cannot be asked from here"):
        loopscale.launch([*overrides, "cluster=local"])


def test_queued_jobs_that_carry_an_old_profile_are_named_and_replaced(queued, commands, capsys):
    folder, overrides = queued("cluster.resources.time_min=7")
    commands("squeue", waiting(folder))
    launch = ["launch", *overrides, "cluster.resources.time_min=9"]
    loopscale.main(launch)
    named = "2 queued jobs ask for what the profile said before (time_min=7, now 9): somewhere:5_0"
    assert named in capsys.readouterr().out
    gone = folder.parent / "cancelled"
    commands("squeue", f"[ -e {gone} ] || {{ {waiting(folder)}; }}")
    cancelled = commands("scancel", f"touch {gone}")
    commands("sbatch", "echo 'Submitted batch job 6'")
    loopscale.main([*launch, "resubmit=true"])
    assert "submitted 2 runs: somewhere:6" in capsys.readouterr().out
    assert cancelled() == ["scancel 5_0 5_1"]
    assert [array.resources.time_min for array in read_arrays(folder)] == [7, 9]


def test_what_runs_is_not_replaced_for_an_old_profile(queued, commands):
    folder, _ = queued("cluster.resources.time_min=7")
    commands("squeue", waiting(folder, "RUNNING|None|n1|1:00"))
    ledger = read_ledger(folder)
    resources = dataclasses.replace(ledger.cluster.resources, time_min=9)
    changed = dataclasses.replace(ledger, cluster=dataclasses.replace(ledger.cluster, resources=resources))
    submission = submit_missing(folder, changed, open_backend(changed.cluster), resubmit=True)
    assert submission.jobs == [] and submission.notes == []


def test_an_unknown_field_of_the_profile_is_refused_as_ever(queued):
    _, overrides = queued()
    with pytest.raises(ConfigError, match="tme_min"):
        study_of([*overrides, "cluster.resources.tme_min=3"])
