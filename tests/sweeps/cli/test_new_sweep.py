"""`loopscale new`: a sweep file from a few answers, with shipped rates, that plan and launch take."""

from __future__ import annotations

import io
import itertools
import re

import pandas as pd
import pytest
import yaml

import loopscale
from model.config_validation import ConfigError
from sweeps.config.folders import CONF
from sweeps.planning.new_grid import MIN_BUDGETS, MIN_SWEPT, ladder
from tests.commands import command


@pytest.fixture
def here(here, monkeypatch):
    """That folder, and a simulation of a few studies."""
    monkeypatch.setattr("sweeps.cli.new.BRIEF", {"studies": 100, "analysts": 1, "bootstrap": 100})
    return here


def rates(run):
    return run.optimizer.muon_learning_rate, run.optimizer.adamw_learning_rate


def test_a_new_sweep_is_priced_simulated_and_its_next_command_works(here, capsys, monkeypatch):
    arguments = ("scale=looped_30k", "allowance=2e14", "cluster=fake", f"root={here / 'runs'}")
    code, out, _ = command(capsys, "new", "sweep", "mine", *arguments)
    assert code == 0
    text = (here / "conf" / "sweep" / "mine.yaml").read_text()
    assert "conf/sweep/study_30k.yaml, chosen for this scale" in text
    assert "34 looped runs and 5 controls" in out and "under the law of" in out
    following = out.splitlines()[-1].removeprefix("next: loopscale ").split()
    assert following == ["plan", "sweep=mine", "cluster=fake", f"root={here / 'runs'}"]
    _, out, _ = command(capsys, *following)
    following = out.splitlines()[-1].removeprefix("next: loopscale ").split()
    assert following == ["launch", "sweep=mine", "cluster=fake", f"root={here / 'runs'}"]
    study = loopscale.compose(following[1:])
    (run,) = study.runs.values()
    shipped = loopscale.compose(["sweep=study_30k"]).runs["looped_30k"]
    assert rates(run) == rates(shipped) and run.data == shipped.data and run.schedule == shipped.schedule
    frame = loopscale.plan(following[1:])
    assert (frame["verdict"] == "OK").all() and 1.8e14 < frame["nominal_flops"].sum() <= 2e14
    code, out, _ = command(capsys, *following, "data.unique_tokens=1_000_000_000")
    assert code == 0 and "39 done" in out
    assert out.splitlines()[-1].startswith("next: loopscale launch sweep=mine") and "fake" not in out


def test_the_comment_of_a_file_is_the_command_that_writes_it(here):
    path = loopscale.new(["sweep=a", "scale=looped_15k", "budgets_flops=1e12,2e12", "mean_recurrences=4,2"])
    first = path.read_text()
    (line,) = [line for line in first.splitlines() if "loopscale new" in line]
    path.unlink()
    loopscale.new([f"sweep={line.split()[4]}", *line.split()[5:]])
    assert path.read_text() == first


def test_rates_are_carried_over_to_another_width_by_the_optimizers_own_rule(here):
    loopscale.new(["sweep=wide", "scale=looped_150k", "budgets_flops=1e13"])
    (run,) = loopscale.compose(["sweep=wide"]).runs.values()
    assert rates(run) == (
        0.02,
        0.096,
    )  # conf/sweep/study_60k.yaml, the most similar with layers around the loop
    assert (run.optimizer.lr_scaling, run.optimizer.lr_base_width) == ("mup_width", 40)
    assert run.model.vocabulary_size == 512 and run.training.threads is None
    loopscale.new(["sweep=wider", "scale=looped_10m", "budgets_flops=1e17", "data=installed_python"])
    (run,) = loopscale.compose(["sweep=wider"]).runs.values()
    assert run.optimizer.lr_base_width == 768 and run.model.vocabulary_size == 4096


def test_the_share_of_the_unembedding_is_that_of_the_flops(here):
    path = loopscale.new(["sweep=head", "scale=looped_30k"])
    # docs/study: 176,256 + 160,384 µ FLOPs per token at width 48; the unembedding takes 6 FLOPs a parameter
    share = 6 * 48 * 512 / (176_256 + 160_384 * 4)
    assert f"the unembedding takes {share:.0%} of the FLOPs at µ = 4" in path.read_text()


def test_an_allowance_pays_for_the_whole_grid_and_is_nearly_used_up():
    for flops in (1e13, 3.7e19):
        budgets = ladder(flops, [2, 4, 6])
        assert [high / low for low, high in itertools.pairwise(budgets)] == pytest.approx([2] * 4)
        cost = 4 * sum(budgets) + 2 * (
            budgets[0] + budgets[2]
        )  # three recurrences, the control, further seeds
        assert 0.9 * flops < cost <= flops


def test_device_hours_are_converted_at_the_clusters_speed(here, capsys):
    hours = ["scale=looped_140m", "cluster=slurm_h100", "allowance=1000h"]
    code, out, _ = command(capsys, "new", "sweep=hours", *hours)
    assert code == 0 and "most minima lie above these recurrences: lower budgets, or mean_rec" in out
    path = here / "conf" / "sweep" / "hours.yaml"
    assert loopscale.compose(["sweep=hours"]).cluster.kind == "slurm"  # the file remembers its cluster
    assert "# scales: [looped_140m, looped_370m]" in path.read_text()
    budgets = [float(flops) for flops in yaml.safe_load(path.read_text())["sweep"]["budgets_flops"]]
    speed = 9.89e14 * 0.4  # of conf/cluster/slurm_h100.yaml
    cost = 7 * sum(budgets) + 2 * (budgets[0] + budgets[2])
    assert 0.9 * 1000 < cost / speed / 3600 <= 1000


def test_three_recurrences_cannot_give_a_law_and_the_command_says_so(here, capsys):
    grid = ["scale=looped_30k", "mean_recurrences=2,4,8", "cluster=fake"]
    code, out, _ = command(capsys, "new", "sweep=three", *grid)
    assert code == 0
    assert (
        "fit is bound to refuse laws of the optimal recurrence and tokens. They need 3 budgets with 4" in out
    )
    assert "design: no curve of the grid can be fitted: 3 recurrences, at least 4 are needed" in out


def test_what_is_not_given_is_asked_for_on_a_terminal(here, corpus, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"looped_15k\n{corpus}\n1e12, 2e12, 4e12\n\n"))
    code, _, err = command(capsys, "new", "sweep", "asked")
    assert code == 0 and "scale (" in err and "FLOP budgets" in err and "mean recurrences" in err
    assert "a file or folder of yours, or one of fineweb_edu" in err
    study = loopscale.compose(["sweep=asked"])
    sweep, (run,) = study.sweep, study.runs.values()
    assert (run.data.source, run.data.path) == ("text", str(corpus))
    assert sweep.budgets_flops == [1e12, 2e12, 4e12] and sweep.mean_recurrences == [2, 4, 6, 8, 10, 12]


def test_a_sweep_on_own_text_keeps_its_place_and_says_on_what_the_rates_were_chosen(here, corpus):
    path = loopscale.new(["sweep=own", "scale=looped_15k", "data=text", f"path={corpus}"])
    (run,) = loopscale.compose(["sweep=own"]).runs.values()
    assert (run.data.source, run.data.path) == ("text", str(corpus)) and run.data.vocabulary_size == 512
    assert "chosen for this scale on installed_python; the same for every cell" in path.read_text()


def test_budgets_that_are_too_short_name_an_allowance_that_keeps_every_cell(here, capsys):
    given = "budgets_flops=1e10,2e10,4e10"
    code, out, _ = command(capsys, "new", "sweep", "small", "scale=looped_15k", given)
    # docs/study: 111,360 + 82,432 µ FLOPs per token; a batch has 2,048 tokens
    least = 20 * 2048 * (111_360 + 82_432 * 12)
    assert code == 0 and least == pytest.approx(4.508e10, rel=1e-3)
    assert "are dropped as too short: 20 steps (sweep.min_steps) at µ = 12 take 4.6e10 FLOPs" in out
    assert "the shipped sweep study_15k of this scale has budgets_flops=5e11,1e12,2e12,4e12,8e12" in out
    path, again = re.search(r"start the budgets there: rm (\S+) && loopscale (.*)", out).groups()
    assert again.endswith("budgets_flops=4.6e10,9.2e10,1.84e11")
    (here / path).unlink()
    code, out, _ = command(capsys, *again.split())
    assert " 0 dropped" in out and "too short" not in out


@pytest.mark.parametrize("allowance", [1.5e12, 3e12, 1e14, 1e17])
def test_a_grid_within_an_allowance_can_give_a_law_and_drops_no_cell(here, allowance):
    loopscale.new(["sweep=fits", "scale=looped_15k", f"allowance={allowance}"])
    frame = loopscale.plan(["sweep=fits"])
    looped = frame[frame["kind"] == "looped"]
    assert (frame["verdict"] == "OK").all() and frame["nominal_flops"].sum() <= allowance
    assert looped["target_flops"].nunique() >= MIN_BUDGETS
    assert (looped.groupby("target_flops")["mean_recurrence"].nunique() >= MIN_SWEPT).all()


def test_budgets_of_a_known_law_have_their_optimum_inside_the_recurrences(here, capsys):
    _, out, _ = command(capsys, "new", "sweep", "inside", "scale=looped_5k", "allowance=2e13")
    inside = re.search(r"minima all lie inside the grid in (\d+) % of the studies", out)[1]
    assert int(inside) > 50 and "at an edge of µ" not in out


@pytest.mark.parametrize("given", ["allowance=2e12", "allowance=0.03h", "budgets_flops=1e10,2e10,4e10"])
def test_budgets_outside_a_known_law_are_mended_by_the_command_that_is_printed(here, capsys, given):
    _, out, _ = command(capsys, "new", "sweep", "below", "scale=looped_5k", given)
    assert re.search(r"(\d) of \1 budgets have their optimum at an edge of µ", out)
    unit, path, again = re.search(r", for (\S+ .*FLOPs\)?) in all: rm (\S+) && loopscale (.*)", out).groups()
    assert re.match(r"0\.\d+h \(\S+ FLOPs\)$" if given.endswith("h") else r"\S+ FLOPs$", unit)
    assert again.split()[-1].partition("=")[0] == given.partition("=")[0]
    (here / path).unlink()
    _, out, _ = command(capsys, *again.split())
    inside = re.search(r"minima all lie inside the grid in (\d+) % of the studies", out)[1]
    assert int(inside) > 50 and "at an edge of µ" not in out


def test_another_scale_gets_as_many_tokens_per_parameter_as_the_shipped_sweep(here):
    loopscale.new(["sweep=alike", "scale=looped_60k", "mean_recurrences=2,4,6,8"])
    loopscale.new(["sweep=other", "scale=looped_90k", "mean_recurrences=2,4,6,8"])
    ratio = [
        float((frame["tokens"] / frame["n_params_total"])[frame["mean_recurrence"] == 4].iloc[0])
        for frame in (loopscale.plan(["sweep=alike"]), loopscale.plan(["sweep=other"]))
    ]
    assert ratio[1] == pytest.approx(ratio[0], rel=0.1)


def test_the_text_suffices_for_the_longest_run(here, capsys):
    grid = ["scale=looped_5k", "mean_recurrences=2,4,6,8"]
    _, out, _ = command(capsys, "new", "sweep", "more", *grid, "budgets_flops=1e12,2e12,4e12")
    # 10,788,243 tokens in docs/demo/pilot/runs.csv, 91,818,853 in docs/study/study_15k/runs.csv
    assert "of about 9.18e+07 training tokens of installed_python (" in out
    assert "override /data: installed_python #" in (here / "conf" / "sweep" / "more.yaml").read_text()
    tiny = [*grid, "budgets_flops=1e12", "data=installed_python_tiny"]
    _, out, _ = command(capsys, "new", "sweep", "tiny", *tiny)
    assert "of about 4.92e+06 training tokens of installed_python_tiny (2.1 epochs); 5 runs would be d" in out
    _, out, _ = command(capsys, "plan", "sweep=tiny", "sweep.max_epochs=3")
    assert "(2.1 epochs); 5 runs repeat their text, which fit leaves out of laws" in out
    assert "; data=installed_prose has enough; it is not prepared yet" in out


def test_a_path_is_the_text_and_its_size_says_whether_it_suffices(here, capsys):
    (here / "mine" / "deeper").mkdir(parents=True)
    (here / "mine" / "deeper" / "a.txt").write_text("one two three " * 15_000)  # 210 kB
    grid = ["scale=looped_5k", "mean_recurrences=2,4,6,8", "budgets_flops=4e11,8e11,1.6e12"]
    _, out, _ = command(capsys, "new", "sweep", "own", *grid, "path=mine")
    assert "override /data: text #" in (here / "conf" / "sweep" / "own.yaml").read_text()
    # 2.1 bytes a token of 512, .98 of the documents: 98,000
    found = re.search(r"reads (\S+) of about 9.8e\+04 training tokens of text, by the size of its files", out)
    assert found and f"({float(found[1]) / 98_000:.2g} epochs)" in out
    assert "19 runs would be dropped" in out and "times the text, or budgets that are smaller" in out
    _, out, _ = command(capsys, "plan", "sweep=own")
    assert out.splitlines()[-1] == "next: loopscale data sweep=own"  # which counts, not launch
    (here / "mine" / "b.jsonl.gz").write_bytes(b"")
    _, out, _ = command(capsys, "plan", "sweep=own")
    assert out.splitlines()[-1] == "next: loopscale launch sweep=own"
    assert f"data: the longest run reads {found[1]} tokens of text; it is not prepared yet" in out


def test_a_path_that_no_run_reads_is_refused(here, capsys):
    expected = "path is the text of data=text, and data=installed_prose has its own"
    new = ("new", "sweep", "own", "scale=looped_5k", "data=installed_prose", "path=.")
    for words in (new, ("plan", "sweep=demo", "path=.")):
        code, _, err = command(capsys, *words)
        assert code == 2 and expected in err and len(err.splitlines()) == 1


def test_the_counted_tokens_are_those_of_the_committed_runs():
    from sweeps.planning.text_needed import COUNTED

    for folder, name in (("study/study_15k", "installed_python"), ("demo/pilot", "installed_prose")):
        runs = pd.read_csv(CONF.parent / "docs" / folder / "runs.csv")
        assert set(runs["dataset"]) == {name} and set(runs["unique_tokens"]) == {COUNTED[name][512]}


def test_the_help_describes_what_can_be_chosen_yours_included(here, capsys):
    (here / "conf" / "cluster").mkdir(parents=True)
    (here / "conf" / "cluster" / "ours.yaml").write_text("# our machine room\nkind: slurm\n")
    code, out, _ = command(capsys, "new", "--help")
    assert code == 0 and re.search(r"\n  ours +our machine room\n", out)
    assert out.index("  looped_15k ") < out.index("  looped_140m ") and "transformer_140m" not in out
    for name in ("looped_15k", "installed_python", "text", "slurm_h100"):
        assert re.search(rf"\n  {name} +\S", out)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sweep=x"], "scale is not set: scale=..."),
        (["sweep=demo", "scale=looped_30k"], "demo.yaml exists already"),
        (["sweep=a/b", "scale=looped_30k"], "sweep=a/b: name it with letters"),
        (
            ["sweep=x", "scale=looped_33k"],
            "scale=looped_33k is unknown .did you mean looped_30k.*looped_5k, ",
        ),
        (["sweep=x", "scale=transformer_140m"], "its kind is transformer"),
        (["sweep=x", "scale=looped_30k,looped_15k"], "add the line `scales: .looped_30k, looped_15k.` below"),
        (
            ["sweep=x", "scale=looped_30k", "allowance=20h", "cluster=slurm"],
            "time it .loopscale plan sweep=study_30k model=looped_30k cluster=slurm calibrate=true.",
        ),
        (["sweep=x", "scale=looped_30k", "allowance=1e13", "budgets_flops=1e12"], "leave one out"),
        (["sweep=x", "scale=looped_30k", "allowance=-3"], "allowance=-3: give FLOPs or device-hours above 0"),
        (["sweep=x", "scale=looped_30k", "allowance=1e6"], "the least grid that can give a law, µ = 2,4,6,8"),
        (
            ["sweep=x", "scale=looped_30k", "allowance=0.000001h"],
            r"takes \S+h \(\S+ FLOPs\); give allowance=\S+h,",
        ),
        (["sweep=x", "scale=looped_30k", "budgets_flops=1e6"], "no cell would run at budgets of"),
        (["sweep=x", "scale=looped_15k", "budgets_flops=1e6,2e6"], ". Start at 4.6e10"),  # 20 steps at µ = 12
        (["sweep=x", "scale=looped_30k", "data=nosuch"], "data=nosuch is unknown"),
        (["sweep=x", "scale=looped_30k", "data=text"], "path is not set: path=..., a file or folder"),
    ],
)
def test_a_mistake_writes_nothing(here, settings, said):
    with pytest.raises(ConfigError, match=said):
        loopscale.new(settings)
    assert list(here.iterdir()) == []


def test_every_reference_is_shipped_and_trains_its_scale(here):
    from sweeps.planning import new_sweep

    for name in new_sweep.REFERENCES:
        assert (CONF / "sweep" / f"{name}.yaml").exists()
        scale = next(iter(loopscale.compose([f"sweep={name}"]).runs))
        assert new_sweep.closest_reference(scale, new_sweep.looped_model(scale)).name == name
