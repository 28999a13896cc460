"""Every command of README.md, the tutorial, the gallery and gpu.md runs as it is written there, in small."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import loopscale
from harness.run.length import solve
from sweeps.cli.main import _positional
from sweeps.config.commands import TABLES
from sweeps.config.compose import compose_study, compose_table, single_run
from sweeps.launch.launch import write_ledger
from sweeps.state.collect import collect

ROOT = Path(__file__).resolve().parents[3]
README, TUTORIAL, GALLERY = ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "gallery.md"
GPU = ROOT / "docs" / "gpu.md"

# Cells need more than the tests' text; a plan takes it as given while nothing is prepared.
MUCH_TEXT = ["data.unique_tokens=1_000_000_000_000", "cache=unprepared"]
SMALL_TEXT = ["data.vocabulary_size=300", "data.validation_fraction=0.2"]
BRIEF = ["assume.studies=100", "assume.analysts=1", "assume.bootstrap=100"]
FEW = ["bootstrap=100", "validation=false"]
CACHED = ("eval", "export", "generate", "data")  # commands that need the prepared text
FINISHED = ["sweep=tiny"]  # of the tests: six runs of 10 to 20 steps, collected
A_RUN = "looped_*-mu2-steps10-*"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the commands that a pattern matches are tested; the first that matches counts."""

    pattern: str
    settings: list[str] = field(default_factory=list)  # in place of the command's own of the same keys
    composed: bool = False  # for want of a network, a GPU, several processes or hours
    network: bool = False  # its comment must say so
    tiny: bool = False  # with the settings of the run of tests/conftest.py


RULES = [
    Rule(pattern=r"--version|completion \w+|\w* ?--help.*"),
    Rule(pattern=r"demo\b", composed=True),  # tests/sweeps/cli/test_demo.py runs it
    Rule(pattern=r"new sweep "),
    Rule(pattern=r"pursue ", composed=True),  # tests/sweeps/pursuit runs it
    Rule(pattern=r"plan .*suggest=", settings=["sweep=study_15k", *BRIEF, *MUCH_TEXT]),
    Rule(pattern=r"plan .*design=search", settings=[*BRIEF, *MUCH_TEXT], composed=True),  # see test_design.py
    Rule(pattern=r"plan .*design=true", settings=[*BRIEF, *MUCH_TEXT]),
    Rule(pattern=r"plan .*calibrate=true", composed=True),
    Rule(pattern=r"plan ", settings=MUCH_TEXT),
    Rule(pattern=r"launch .*dry_run=true", settings=MUCH_TEXT),
    Rule(pattern=r"launch ", settings=["cluster=fake", *MUCH_TEXT]),  # also the clusters that are not here
    Rule(pattern=r"sync .*mode=online", composed=True, network=True),
    Rule(pattern=r"(status|cancel|retry|collect|sync) ", settings=FINISHED),
    Rule(pattern=r"(fit|report|compare) .*data=wandb:", composed=True, network=True),
    Rule(pattern=r"report data=parcae_published", composed=True),  # test_parcae.py runs it
    Rule(pattern=r"report data=docs/study/", composed=True),  # make study-figures runs it
    Rule(pattern=r"(fit|report|compare) data=", settings=FEW),
    Rule(pattern=r"(fit|report|compare) ", settings=[*FINISHED, *FEW]),
    Rule(pattern=r"eval .*tasks=core.*", composed=True),
    Rule(pattern=r"eval .*tasks=", settings=[*FINISHED, "limit=1"]),
    Rule(pattern=r"eval .*sweep=", settings=[*FINISHED, "max_depth=4"]),
    Rule(pattern=r"eval checkpoint=", settings=["max_depth=4"]),
    Rule(pattern=r"export ", settings=["folder=exported"]),
    Rule(pattern=r"generate ", settings=["tokens=8"]),
    Rule(pattern=r"serve_cost ", settings=["repeats=1", "tokens=2", "batches=1"]),
    Rule(pattern=r"data data=huggingface", composed=True, network=True),
    Rule(pattern=r"data ", settings=["path=my_corpus", *SMALL_TEXT]),
    Rule(pattern=r"train .*training.parallel=", composed=True),
    Rule(pattern=r"train .*logger=wandb", composed=True),  # tests/harness/run runs it
    Rule(pattern=r"train ", tiny=True),
]


@dataclass(frozen=True)
class Documented:
    """A command of a page and the comment behind it."""

    page: str
    text: str
    comment: str = ""

    @property
    def command(self) -> str:
        """Return what follows `loopscale`, also behind torchrun."""
        return re.sub(r"^.*?\bloopscale ", "", self.text)

    @property
    def rule(self) -> Rule:
        """Return the rule that it is tested by; AssertionError if there is none."""
        for rule in RULES:
            if re.match(rule.pattern, self.command):
                return rule
        raise AssertionError(f"{self.page}: no rule in {Path(__file__).name} says how to test: {self.text}")


def documented(page: Path) -> list[Documented]:
    """Return the `loopscale` commands of a page, those of fenced blocks and those within its sentences."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command, _, comment = line.partition(" #")
            if re.match(r"(loopscale|torchrun .*-m loopscale) ", command):
                found.append(Documented(page.name, command.strip(), comment.strip()))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`(loopscale [^`]+)`", prose)
    return found + [Documented(page.name, " ".join(span.split())) for span in spans]


def small(command: Documented, names: dict[str, str], tiny: list[str]) -> list[str]:
    """Return the words of a command with the names of the tests' files and the settings of its rule."""
    text = command.command
    for name, value in names.items():
        text = text.replace(name, value)
    words = shlex.split(text)
    settings = command.rule.settings + (tiny if command.rule.tiny else [])
    keys = {text.partition("=")[0] for text in settings}
    return [word for word in words if word.partition("=")[0] not in keys and word != "..."] + settings


# What is the same command here, such as `status` of two sweeps, runs once.
ALL = {
    tuple(small(command, {}, [])): command
    for command in itertools.chain.from_iterable(map(documented, (TUTORIAL, README, GALLERY, GPU)))
}


@pytest.fixture(scope="session")
def desk_once(made_once, finished_once, corpus, cache, tiny_study_in):
    """A working folder: the tutorial's files, the sweeps that its commands write, and `tiny`, collected."""

    def make(folder):
        shutil.copytree(corpus, folder / "my_corpus")
        shutil.copytree(finished_once, folder / "runs" / "tiny")
        write_ledger(tiny_study_in(folder / "runs"))  # with this process's cache
        collect(folder / "runs" / "tiny")
        (run,) = (folder / "runs" / "tiny").glob(A_RUN)
        loopscale.export([f"checkpoint={run}", f"folder={folder / 'export'}", f"cache={cache}"])
        (folder / "runs" / "study_15k").mkdir()
        for name in ("runs.csv", "depths.csv"):
            shutil.copy(ROOT / "docs" / "study" / "study_15k" / name, folder / "runs" / "study_15k")
        files = re.findall(r"^```yaml\n# (conf/\S+): [^\n]*\n(.*?)^```", TUTORIAL.read_text(), re.M | re.S)
        for path, content in files:
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_text(content)
        points(folder / "points.csv")
        with contextlib.chdir(folder):
            for command in documented(TUTORIAL):
                if command.command.startswith("new sweep "):
                    loopscale.new(_positional("sweep", shlex.split(command.command)[1:]))

    return made_once("documented", make)


def points(path: Path) -> None:
    """Write losses of a known surface: five budgets of seven sizes."""
    rows = ["flops,params,val_loss"]
    for budget in (1e18, 2e18, 4e18, 8e18, 16e18):
        for factor in (0.25, 0.4, 0.63, 1, 1.6, 2.5, 4):
            params = factor * 0.1 * budget**0.5
            tokens = budget / (6 * params)
            rows.append(f"{budget},{params},{1.7 + 400 * params**-0.34 + 410 * tokens**-0.28}")
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def desk(desk_once, tmp_path, cache, tiny_study_in, monkeypatch, drawn_glyphs):
    """A copy of that folder as the working directory."""
    shutil.copytree(desk_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPSCALE_CONFIG", raising=False)
    monkeypatch.setattr("sweeps.cli.new.BRIEF", {"studies": 100, "analysts": 1, "bootstrap": 100})
    write_ledger(tiny_study_in("runs"))  # with this process's cache
    return tmp_path


@pytest.fixture
def names(desk):
    """The placeholders of the pages and what stands for them here."""
    run = next(path.name for path in (desk / "runs" / "tiny").glob(A_RUN))
    named = {"runs/demo/": "runs/tiny/", "RUN_ID": run, "run=ID": f"run={run}"}
    named |= {"CLONE/": "", "docs/study/": f"{ROOT}/docs/study/"}
    return named | dict.fromkeys(("FOLDER", "my_model"), "export") | {"COMMAND": "plan", "NAME": "mine"}


@pytest.mark.parametrize("command", ALL.values(), ids=lambda command: command.text)
def test_a_documented_command_runs(command, desk, names, cache, tiny_run, capsys):
    rule = command.rule
    words = small(command, names, [*tiny_run, "tokens=640", "budget_flops=null"])
    if rule.network:
        assert "network" in command.comment
    if words[0] == "new":
        shutil.rmtree(desk / "conf" / "sweep")
    if words[0] in ("plan", "launch") and {"sweep=first", "sweep=larger"} & set(words):
        words.append("path=my_corpus")  # which those sweeps name by its place in the folder that was copied
    if words[0] in CACHED:
        words.append(f"cache={cache}")
    if rule.composed:
        compose_table(words[0], words[1:]) if words[0] in TABLES else compose_study(words[1:])
        return
    loopscale.main(words)
    assert capsys.readouterr().out


def test_the_runs_of_the_pages_are_long_enough_for_a_law():
    commands = [one.command for one in [*documented(README), *documented(TUTORIAL)]]
    lengths = [
        (solve(single_run(study)).steps, study.sweep.min_steps)
        for words in map(shlex.split, commands)
        if words[0] == "train" and any(word.startswith("budget_flops=") for word in words)
        for study in [compose_study(words[1:])]
    ]
    assert lengths and all(steps >= least for steps, least in lengths)


def test_a_command_without_a_rule_fails():
    with pytest.raises(AssertionError, match="no rule"):
        Documented("README.md", "loopscale frobnicate sweep=demo").rule  # noqa: B018


def test_the_commands_of_the_pages_are_found():
    assert len(documented(README)) > 10 and len(documented(TUTORIAL)) > 15
    assert {command.command.split()[0] for command in documented(TUTORIAL)} >= {
        *("new", "data", "plan", "launch", "status", "cancel", "retry", "collect", "fit", "compare", "report")
    }
