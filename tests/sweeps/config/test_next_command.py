"""The last line of a command's output: the next command, as a shell reads it back."""

from __future__ import annotations

import shlex

from sweeps.config.next_command import next_command


def test_the_next_command_keeps_the_users_own_settings_and_no_others():
    typed = [
        "sweep=my files/mine.yaml",
        "cluster=ours",
        "root=runs of mine",
        "sweep.seeds=[0,1]",
        "design=true",
    ]
    assert shlex.split(next_command("launch", typed)) == ["next:", "loopscale", "launch", *typed[:4]]
    assert shlex.split(next_command("collect", typed))[3:] == [typed[0], typed[2]]
    assert (
        next_command("plan", ["sweep=a", "suggest=4"], "suggest=8")
        == "next: loopscale plan sweep=a suggest=8"
    )


def test_the_analysis_keeps_its_data_and_the_last_value_of_a_key():
    typed = ["data=points.csv", "columns.x=size", "where=lr == 0.02", "bootstrap=100", "root=a", "root=b"]
    words = shlex.split(next_command("report", typed))[3:]
    assert words == ["data=points.csv", "columns.x=size", "where=lr == 0.02", "root=b"]


def test_folders_of_configuration_files_are_written_as_their_flag():
    words = shlex.split(next_command("launch", ["sweep=mine", "hydra.searchpath=my conf"]))
    assert words[2:] == ["launch", "sweep=mine", "--config-dir", "my conf"]
