"""What a new user meets on the way from `new sweep` to the report: mistakes, hints and lines of progress."""

from __future__ import annotations

import shlex

import pytest

import loopscale
from model.config_validation import ConfigError
from sweeps.cli import progress
from sweeps.cli.help import PROFILE_KEYS, copy_command
from sweeps.config.compose import compose_study
from sweeps.config.folders import CONF
from sweeps.state.eta import Forecast
from sweeps.state.sweep_status import SweepStatus
from tests.commands import command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("plan sweep=demo cluster.workers=2", "(did you mean cluster.parallel_runs?)"),
        ("plan sweep=demo workers=2", "(did you mean cluster.parallel_runs?)"),
        ("plan sweep=demo cluster.partition=x", "(did you mean cluster.resources.partition?)"),
        ("plan sweep=demo cluster.max_hours=3", "(did you mean cluster.resources.time_min?)"),
        ("plan sweep=demo cluster.resources.queue=x", "(did you mean cluster.resources.partition?)"),
        ("plan sweep=demo sweep.mu=[2]", "(did you mean sweep.mean_recurrences?)"),
        ("plan sweep=demo cluster.xyz=1", "(choose from cluster.array_parallelism, "),
        (
            "new sweep x cluster.parallel_runs=1",
            "new takes cluster=... alone; cluster.parallel_runs is for plan",
        ),
        ("new sweep x seeds=[0,1]", "new has no key seeds; plan and launch take it, as sweep.seeds"),
        ("fit sweep=x cluster=slurm", "fit has no key cluster; plan and launch take it"),
        (
            "launch sweep=demo dry_run=true",
            "has no job files; name the profile of a cluster that has: cluster=",
        ),
    ],
)
def test_a_mistake_is_answered_with_what_to_write(capsys, here, arguments, said):
    code, _, err = command(capsys, *arguments.split())
    assert code == 2 and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("name", ["new", "launch"])
def test_the_help_has_the_keys_of_a_profile_that_users_set_and_they_exist(capsys, name):
    _, out, _ = command(capsys, name, "--help")
    for profile, keys in PROFILE_KEYS.items():
        for key in keys:
            (line,) = [line for line in out.splitlines() if line.startswith(f"  cluster.{key}=")]
            override, _, comment = line.partition("#")
            assert comment.strip() not in ("", f"{profile}:")
            compose_study(["sweep=demo", f"cluster={profile}", override.strip()])
    assert copy_command("slurm") in out


def test_the_copied_profile_is_found(here):
    words = shlex.split(copy_command("slurm"))
    assert words[:4] == ["mkdir", "-p", "conf/cluster", "&&"] and words[4] == "cp"
    (here / "conf" / "cluster").mkdir(parents=True)
    (here / words[6]).write_bytes((CONF / words[5]).read_bytes())
    assert compose_study(["sweep=demo", "cluster=mine"]).cluster.kind == "slurm"


def test_a_dry_run_ends_with_what_it_would_cost_and_the_launch(capsys, here):
    code, out, _ = command(capsys, "launch", "sweep=demo", "cluster=slurm", "dry_run=true")
    assert code == 0 and "#!/bin/bash" in out and "nothing was submitted" in out and "29 cells: 29 OK" in out
    assert out.splitlines()[-1] == "next: loopscale launch sweep=demo cluster=slurm"


def test_hours_without_a_known_speed_name_both_commands(here):
    wanted = ["sweep=x", "scale=looped_30k", "allowance=20h", "cluster=slurm"]
    with pytest.raises(ConfigError) as error:
        loopscale.new(wanted)
    timing, again = str(error.value).split("Once it is timed, write the file: ")
    assert "calibrate=true" in timing
    assert again == "loopscale new sweep x scale=looped_30k allowance=20h cluster=slurm"


def test_stages_are_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter((0.0, 1.0, 20.0, 21.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.stage_progress() as show:
        show("laws", 0.0)
        show("laws", 0.1)
        show("laws", 0.25)  # 20 s for a quarter
        show("figures", 0.0)
    assert capsys.readouterr().err.splitlines() == ["laws ...", "laws: 25 %, ETA 1:00", "figures ..."]


def test_the_watch_line_counts_what_trains():
    row = {"status": "planned", "train_loss_nats": None, "nominal_flops": 1.0, "steps": 10, "step": 0}
    row |= {"first_step": 0, "run_id": "a"}
    state = SweepStatus(
        sweep="tiny",
        rows=[row, row | {"status": "done", "step": 10}],
        trunks=[row | {"status": "running"}, row | {"status": "running"}],
        axes=[],
        notes=[],
        forecast=Forecast(remaining_flops=1.0, remaining_run_hours=None, ends_in_s=None, running=2),
    )
    line = progress._Meter().line(state)
    assert line.startswith("1/2 runs done, 2 trunk segments in training, 25 % of the FLOPs")
