"""The command line: one grammar, help everywhere, one line for a mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import loopscale
from sweeps.cli.tables import as_text, cell_text
from sweeps.config.folders import CONF
from sweeps.config.study import SweepConfig


def run(capsys, *arguments):
    """Run a command; return its exit code, stdout and stderr."""
    code = 0
    try:
        loopscale.main(list(arguments))
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


COMMANDS = [
    "data",
    "train",
    "eval",
    "export",
    "generate",
    "new",
    "plan",
    "launch",
    "status",
    "cancel",
    "retry",
    "collect",
    "sync",
    "fit",
    "report",
    "compare",
    "serve_cost",
    "pursue",
    "demo",
    "completion",
]


def test_a_sweep_named_on_the_command_line_is_launched_with_its_settings_again(capsys, tmp_path):
    name = "named-on-the-command-line"
    (tmp_path / name).mkdir()
    (tmp_path / name / "sweep.json").write_text("{}")
    code, _, err = run(capsys, "launch", f"sweep={name}", f"root={tmp_path}")
    assert code == 2 and f"repeat the settings with which {tmp_path}/{name} was launched" in err
    assert f"sweep={name} is unknown" in run(capsys, "launch", f"sweep={name}", f"root={tmp_path}/other")[2]


def test_help_lists_every_command_in_one_line_each(capsys):
    _, out, _ = run(capsys, "--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and f"example: loopscale {command} " in out and "settings (key=value)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plann"], "unknown command plann (did you mean plan?)"),
        (["plan", "sweep=dmo"], "sweep=dmo is unknown (did you mean demo?)"),
        (["plan", "sweep=demo", "model=looped_14m"], "model=looped_14m is unknown (did you mean looped_140m"),
        (["plan", "sweep=demo", "sed=1"], "unknown key sed (did you mean seed?)"),
        (["plan", "sweep=demo", "+sed=1"], "unknown key sed (did you mean seed?)"),
        (["plan", "sweep=demo", "seeds=[0,1]"], "unknown key seeds (did you mean sweep.seeds?)"),
        (["plan", "sweep=demo", "width=64"], "unknown key width (did you mean model.width?)"),
        (["plan", "sweep=demo", "model.widht=64"], "unknown key model.widht (did you mean model.width?)"),
        (["plan", "sweep=demo", "model.width=abc"], "model.width=abc: must be a whole number, as"),
        (["plan", "sweep=demo", "model.width=63"], "model: width must be an even multiple of heads"),
        (["plan", "sweep=demo", "quick=no"], "quick=no: must be true or false, as"),
        (["plan", "sweep=demo", "accounting=mine"], "accounting=mine: must be 'paper' or 'released'"),
        (
            ["plan", "sweep=demo", "sweep.budgets_flops=[-1e9]"],
            "sweep.budgets_flops.0=-1e9: must be greater than 0",
        ),
        (["plan", "sweep=demo", "seed"], "'seed' is not an override: write key=value"),
        (["train", "budget_flops=-1"], "budget_flops=-1: must be greater than 0"),
        (["train", "budget_flops=1e3"], "budget_flops=1000 is too small for one step"),
        (["train"], "how long? set one of budget_flops, tokens, tokens_per_param, steps"),
        (["data", "data=text", "path=/nowhere/at/all"], "/nowhere/at/all"),
        (["status"], "sweep is not set: sweep=..."),
        (
            ["status", "sweep=nosuch"],
            "(nothing was launched there yet): loopscale new --help says how to begin",
        ),
        (["status", "sweep=demo"], "(nothing was launched there yet): loopscale launch sweep=demo"),
        (["collect", "sweep=nosuch"], "no sweep 'nosuch' under runs (nothing was launched there yet)"),
        (
            ["fit", "sweep=nosuch"],
            "which does not exist (nothing was launched there yet): loopscale new --help says how",
        ),
        (["new", "sweep", "scale=looped_5k"], "sweep is not set: write loopscale new sweep NAME"),
        (["completion"], "shell is not set: write loopscale completion SHELL"),
        (["fit", "sweep=demo", "bootstra=3"], "unknown key bootstra (did you mean bootstrap?)"),
        (["plan"], "no sweep chosen: add sweep=NAME"),
        (["plan", "sweep=demo", "allowance=1e12"], "allowance is for design=search and suggest=N"),
        (["train", "-m", "seed=0,("], "seed=0,("),
        (["launch"], "no sweep chosen: add sweep=NAME"),
        (["status", "sweep=123"], "sweep=123: must be text, as"),
        (["status", "sweep=demo", "watch=no"], "watch=no: must be true or false, as"),
        (["fit", "sweep=demo", "format=jsn"], "format=jsn: must be 'text' or 'json'"),
        (["fit", "sweep=demo", "confidence=2.0"], "no runs table in"),
        (["eval", "run=x", "blocks=abc"], "blocks=abc: must be a whole number, as"),
        (["eval", "run=/nowhere"], "/nowhere is not a run folder"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("loopscale: ") and message in err


def test_an_empty_text_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = run(
        capsys, "data", "data=text", f"path={tmp_path / 'empty'}", f"cache={tmp_path / 'cache'}"
    )
    assert code == 2 and "no documents in" in err and "Traceback" not in err


def test_help_shows_the_keys_of_the_sweep_first_and_fits_a_screen(capsys):
    _, out, _ = run(capsys, "plan", "--help")
    assert out.index("min_steps: 20 # a cell") < out.index("settings (key=value)") and "docs/" not in out
    assert out.count("\n") < 66 and "loopscale plan --help all" in out and "model.width" not in out


def test_help_shows_the_defaults_of_every_key_of_a_sweep():
    shown = yaml.safe_load((CONF / "sweep" / "none.yaml").read_text())["sweep"]
    assert list(shown) == [item.name for item in dataclasses.fields(SweepConfig)]
    assert SweepConfig(**shown) == SweepConfig()


@pytest.mark.parametrize("flag", [["--help", "all"], ["--help=all"]])
def test_help_shows_the_keys_of_every_group(capsys, flag):
    _, out, _ = run(capsys, "plan", *flag)
    for key in (
        "min_steps:",
        "cluster.resources.time_min=60",
        "retry.oom.retries=6",
        "model.width=...",
        "checkpoint_every_s:",
    ):
        assert key in out.split()


def test_train_prints_what_it_reached_and_its_record_on_request(capsys, tiny):
    code, out, err = run(capsys, "train", *tiny, "tokens=640")
    assert code == 0 and "validation loss" in out and out.count("\n") == 2 and "nothing is" not in err
    assert "5 steps, 640 tokens" in out and "this run has 5 steps, too few for a law" in err
    assert "training" in err and "evaluating" in err  # two bars
    assert max(map(len, err.splitlines())) < 200
    code, again, err = run(capsys, "train", *tiny, "tokens=640", "format=json")
    record = json.loads(again)
    assert code == 0 and record["status"] == "done" and "is done: nothing is trained again" in err
    assert f"validation loss {record['val_loss_nats']:.4f} nats" in out


def test_a_run_that_is_long_enough_is_trained_without_a_warning(capsys, tiny):
    _, _, err = run(capsys, "train", *tiny, "steps=20")
    assert "too few" not in err


def test_train_goes_through_a_product(capsys, tiny):
    code, out, _ = run(
        capsys, "train", "-m", *tiny, "tokens=640", "seed=0,1", "model.mean_recurrence=1,2", "format=json"
    )
    assert code == 0
    records = json.loads(out)
    assert [(one["seed"], one["mean_recurrence"]) for one in records] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert {one["status"] for one in records} == {"done"}


@pytest.mark.parametrize(("size", "text"), [(4.5e6, "4.3 MiB"), (3 * 2**30, "3.00 GiB")])
def test_memory_is_never_zero(size, text):
    assert cell_text("memory_bytes", size) == text


def test_launch_asks_before_it_starts(capsys, tiny_sweep, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Closed", (), {"isatty": staticmethod(lambda: False)})())
    code, _, err = run(capsys, "launch", *tiny_sweep, "confirm=true")
    assert code == 2 and "add confirm=false" in err


def test_a_damaged_run_folder_is_one_line_and_stays_as_it_is(capsys, tiny, cache, tmp_path):
    run(capsys, "train", *tiny, "tokens=640")
    (folder,) = (tmp_path / "runs" / "single").iterdir()
    (weights,) = folder.glob("checkpoints/*/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    code, out, err = run(capsys, "eval", f"run={folder}", f"cache={cache}")
    assert code == 2 and out == "" and err.count("\n") == 1 and "is corrupt" in err
    weights.write_bytes(whole)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("seed: 0", "seed: 5"))
    for command in (["eval", f"run={folder}", f"cache={cache}"], ["train", *tiny, "tokens=640"]):
        code, out, err = run(capsys, *command)
        assert code == 2 and out == "" and err.count("\n") == 1
        assert "is the folder of another configuration (seed: 5 / 0)" in err
    (folder / "config.yaml").write_text(config)
    code, out, _ = run(capsys, "eval", f"run={folder}", f"cache={cache}", "format=json")
    assert code == 0 and out.startswith("{")


def test_a_result_is_printed_in_any_locale():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    study = Path(__file__).resolve().parents[1] / "docs" / "study" / "study_15k"
    command = [sys.executable, "-m", "loopscale", "fit", f"data={study / 'runs.csv'}", "bootstrap=100"]
    quick = ["validation=false"]
    done = subprocess.run([*command, *quick], env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and "µ* = " in done.stdout.decode("utf-8"), done.stderr[-500:]


def test_brackets_in_a_message_are_text():
    """A table is drawn by rich, which would read them as colours."""
    frame = pd.DataFrame([{"run": "a", "message": "no [/data/part] and no [red] :warning:"}])
    shown = as_text(frame, {"run": "", "message": ""})
    assert "no [/data/part] and no [red] :warning:" in shown


def test_the_tool_is_found_from_the_folder_above_its_clone(tmp_path):
    """There a folder called loopscale is in the way, which Python takes for a package without files."""
    (tmp_path / "loopscale").mkdir()
    command = [sys.executable, "-m", "loopscale", "--version"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("loopscale "), done.stderr
