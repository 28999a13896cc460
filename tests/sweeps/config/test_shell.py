"""No value becomes anything but itself in a shell, in a line of a job file or in a path."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import loopscale
from model.config_validation import ConfigError
from sweeps.backends.job_array import JobArray
from sweeps.backends.slurm.cluster import Slurm
from sweeps.config.cluster import ClusterConfig, Resources
from sweeps.config.shell import quote

ROOT = Path(__file__).resolve().parents[3]
# Whatever a process can be given as an argument: no NUL, and text that UTF-8 can hold.
ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def through_bash(script: str) -> str:
    return subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode()


@given(ARGUMENT)
@example("$(touch hacked)")
@example("it's")
@example('a\nb\r\t\\"`!*?~ # {1,2}')
@settings(max_examples=40)
def test_any_text_comes_back_from_a_shell_unchanged(text):
    assert through_bash(f"printf %s {quote(text)}") == text


@given(ARGUMENT)
@settings(max_examples=20)
def test_a_command_inside_a_command_is_quoted_twice(text):
    """As torchrun's job files are, in which a shell starts a shell."""
    inner = f"printf %s {quote(text)}"
    assert through_bash(f"bash -c {quote(inner)}") == text


def test_there_is_one_quoting_function():
    rooms = [path for room in ("sweeps", "harness") for path in (ROOT / room).rglob("*.py")]
    own = ROOT / "sweeps" / "config" / "shell.py"
    assert [
        path for path in rooms if path != own and re.search(r"shlex|pipes\.quote", path.read_text())
    ] == []


@pytest.mark.parametrize("ranks", ["srun", "torchrun"])
def test_the_command_of_a_job_file_reaches_python_as_it_was_meant(tmp_path, ranks):
    """Run with stand-ins for srun and python that print their arguments."""
    sweep = tmp_path / "a root's $(touch hacked)" / "`touch hacked`"
    resources = Resources(ranks=ranks, nodes=2 if ranks == "torchrun" else 1)
    array = JobArray(
        token="abc", sweep=sweep.name, elements=[["a"]], resources=resources, snapshot="code/x",
        array_parallelism=1,
    )  # fmt: skip
    text = Slurm(ClusterConfig(kind="slurm", python="shown")).job_file(sweep, array, "1 $(touch hacked)")
    (sweep / "code" / "x").mkdir(parents=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in {
        "srun": 'while [ "$1" != bash ] && [ "$1" != shown ]; do shift; done; exec "$@"',
        "shown": 'for word; do echo "<$word>"; done; echo "version <$LOOPSCALE_CODE_VERSION> in <$PWD>"',
        "scontrol": "echo n1",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"<{sweep}/jobs/abc>" in done.stdout.splitlines()
    assert f"version <1 $(touch hacked)> in <{sweep}/code/x>" in done.stdout
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    "override",
    [
        'cluster.resources.partition="a\nb"',
        'cluster.resources.options={comment: "a\nb"}',
        "cluster.resources.options={'x=1 --wrap': 1}",
        "cluster.name='a,b'",
        'cluster.python="a\nb"',
    ],
)
def test_no_value_begins_a_line_of_a_job_file(override):
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=name.removeprefix("cluster.")):
        loopscale.compose(["cluster=slurm", override])


@pytest.mark.parametrize("command", ["status", "cancel", "retry", "collect", "sync", "fit", "compare"])
@pytest.mark.parametrize("name", ["../outside", "/abs"])
def test_no_command_looks_for_a_sweep_elsewhere(command, name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        loopscale.main([command, f"root={tmp_path}", f"sweep='{name}'"])
    said = capsys.readouterr().err
    assert said.startswith("loopscale: sweep=") and "becomes a folder" in said and said.count("\n") == 1


def test_a_root_that_the_scheduler_would_change_is_refused(tmp_path):
    array = JobArray(
        token="abc", sweep="s", elements=[["a"]], resources=Resources(), snapshot="x", array_parallelism=1
    )
    with pytest.raises(ConfigError, match="choose another root"):
        Slurm(ClusterConfig(kind="slurm")).job_file(tmp_path / "100%" / "s", array, "1")
