"""Completion in bash, zsh and fish: what is offered, by the shells themselves, and how fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import loopscale
from sweeps.cli.completion import SCRIPTS, candidates
from sweeps.cli.help import GROUPS
from sweeps.cli.main import NAMES
from sweeps.config.folders import CONF


def offered(line: str) -> list[str]:
    return candidates(line, NAMES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("loopscale pl", ["plan "]),
        ("loopscale st", ["status "]),
        ("loopscale --v", ["--version "]),
        (
            "loopscale plan sweep=isoflop",
            ["sweep=isoflop_140m ", "sweep=isoflop_140m_designed ", "sweep=isoflop_370m "],
        ),
        ("loopscale train -m model=looped_1m", ["model=looped_1m "]),
        ("loopscale plan swee", ["sweep.", "sweep="]),
        ("loopscale plan sweep.min", ["sweep.min_steps="]),
        ("loopscale plan +sweep.min", ["+sweep.min_steps="]),
        ("loopscale plan retry.oom.re", ["retry.oom.retries="]),
        ("loopscale plan training.precision=b", ["training.precision=bfloat16 "]),
        ("loopscale plan accounting=", ["accounting=paper ", "accounting=released "]),
        ("loopscale launch confirm=", ["confirm=false ", "confirm=true "]),
        ("loopscale new sweep x scale=looped_3", ["scale=looped_30k ", "scale=looped_370m "]),
        ("loopscale fit boot", ["bootstrap="]),
        ("loopscale fit sweep.", []),
        ("loopscale completion f", ["fish "]),
        ("loopscale plan --cfg j", ["job "]),
        ("loopscale plan seed=1", []),
        ("loopscale plan path=/tm", []),
        ("loopscale nosuch ", []),
    ],
)
def test_what_is_offered_for_the_last_word(here, line, words):
    found = offered(line)
    assert [word for word in found if not word.startswith("--c")] == words or found == words


def test_the_users_own_files_and_launched_sweeps_are_offered(here):
    (here / "conf" / "sweep").mkdir(parents=True)
    (here / "conf" / "sweep" / "zz_mine.yaml").write_text("sweep: {name: zz_mine}\n")
    assert offered("loopscale plan sweep=zz") == ["sweep=zz_mine "]
    (here / "elsewhere" / "big" / "run-1").mkdir(parents=True)
    (here / "elsewhere" / "big" / "sweep.json").write_text("{}")
    (here / "elsewhere" / "big" / "run-1" / "status.json").write_text("{}")
    assert offered("loopscale status root=elsewhere sweep=") == ["sweep=big "]
    assert offered("loopscale status root=elsewhere sweep=big run=r") == ["run=run-1 "]


def test_every_group_is_offered_with_keys_that_plan_accepts(here):
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"table"}
    assert set(GROUPS) == groups
    for group in GROUPS:
        keys = offered(f"loopscale plan {group}.")
        assert keys and all(key.startswith(f"{group}.") for key in keys)
    assert "cluster.resources." in offered("loopscale plan cluster.")


def test_an_answer_imports_nothing_heavy():
    code = (
        "import sys, loopscale; loopscale.main(['--complete', 'loopscale plan sweep.mi']);"
        "heavy = {'torch', 'pandas', 'hydra', 'omegaconf', 'scipy', 'matplotlib', 'rich'};"
        "print(heavy & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["sweep.min_steps=", "set()"]


def script(folder: Path, shell: str, capsys) -> Path:
    loopscale.main(["completion", shell])
    path = folder / f"completion.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def said_by(shell: str, folder: Path, text: str) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = folder / "bin" / "loopscale"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m loopscale "$@"\n')
    command.chmod(0o755)
    places = {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(CONF.parent)}
    environment = os.environ | places | {"HOME": str(folder)}
    flags = {"zsh": ["-f"], "bash": ["--norc"], "fish": ["--no-config"]}[shell]
    ran = subprocess.run(
        [shell, *flags, "-c", text], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_bash_completes_commands_and_the_value_behind_the_equals_sign(here, capsys):
    path = script(here, "bash", capsys)
    ask = (
        "ask() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=($1); _loopscale loopscale; "
        'printf "<%s>" "${COMPREPLY[@]}"; echo; }'
    )
    lines = ["loopscale pl", "loopscale plan sweep=isoflop_3", "loopscale fit boot"]
    asked = [*(f'ask "{line}"' for line in lines), "complete -p loopscale"]
    out = said_by("bash", here, "\n".join([f"source {path}", ask, *asked]))
    *answers, registered = out.splitlines()
    assert answers == ["<plan >", "<isoflop_370m >", "<bootstrap=>"]
    assert "-F _loopscale loopscale" in registered


def test_zsh_gets_finished_and_unfinished_words_apart(here, capsys):
    path = script(here, "zsh", capsys)
    text = f"""
compdef() {{ }}
compadd() {{ print -- "compadd $*" }}
_files() {{ print files }}
compset() {{ }}
source {path}
words=(loopscale plan sweep=isoflop_3); CURRENT=3; PREFIX=sweep=isoflop_3; _loopscale
words=(loopscale plan swee); CURRENT=3; PREFIX=swee; _loopscale
words=(loopscale plan path=x); CURRENT=3; PREFIX=path=x; _loopscale
"""
    assert said_by("zsh", here, text).splitlines() == [
        "compadd -- sweep=isoflop_370m",
        "compadd -S  --",
        "compadd --",
        "compadd -S  -- sweep. sweep=",
        "files",
    ]


def test_fish_completes_by_its_own_engine(here, capsys):
    path = script(here, "fish", capsys)
    asked = f"source {path}; complete -C 'loopscale plan sweep=isoflop_3'; complete -C 'loopscale expo'"
    assert said_by("fish", here, asked).splitlines() == ["sweep=isoflop_370m", "export"]


def test_the_scripts_are_those_of_the_help(capsys):
    loopscale.main(["completion", "--help"])
    out = capsys.readouterr().out
    assert all(shell in out for shell in SCRIPTS)
