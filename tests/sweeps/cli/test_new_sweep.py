"""`loopscale new`: a sweep file from a few answers, with shipped rates, that plan and launch take."""

from __future__ import annotations

import io
import itertools
import re

import pytest
import yaml

import loopscale
from model.config_validation import ConfigError
from sweeps.config.folders import CONF
from sweeps.planning.new_sweep import ladder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, an empty folder, and a simulation of a few studies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPSCALE_CONFIG", raising=False)
    monkeypatch.setattr("sweeps.cli.new.BRIEF", {"studies": 100, "analysts": 1, "bootstrap": 100})
    return tmp_path


def command(capsys, *arguments):
    code = 0
    try:
        loopscale.main(list(arguments))
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


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
    assert following == ["launch", "sweep=mine", "cluster=fake", f"root={here / 'runs'}"]
    study = loopscale.compose(following[1:])
    (run,) = study.runs.values()
    shipped = loopscale.compose(["sweep=study_30k"]).runs["looped_30k"]
    assert rates(run) == rates(shipped) and run.data == shipped.data and run.schedule == shipped.schedule
    frame = loopscale.plan(following[1:])
    assert (frame["verdict"] == "OK").all() and 1.8e14 < frame["nominal_flops"].sum() <= 2e14
    code, out, _ = command(capsys, *following, "data.unique_tokens=1_000_000_000")
    assert code == 0 and "39 done" in out


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


def test_device_hours_are_converted_at_the_clusters_speed(here):
    hours = ["scale=looped_140m", "cluster=slurm_h100", "allowance=1000h"]
    path = loopscale.new(["sweep=hours", *hours])
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
    assert "chosen for this scale; the same for every cell; chosen on installed_python" in path.read_text()


def test_an_allowance_that_is_too_small_names_one_that_keeps_every_cell(here, capsys):
    code, out, _ = command(capsys, "new", "sweep", "small", "scale=looped_15k", "allowance=3e12")
    # docs/study: 111,360 + 82,432 µ FLOPs per token; a batch has 2,048 tokens
    least = 20 * 2048 * (111_360 + 82_432 * 12)
    assert code == 0 and least == pytest.approx(4.508e10, rel=1e-3)
    assert "are dropped as too short: 20 steps (sweep.min_steps) at µ = 12 take 4.6e10 FLOPs" in out
    enough = re.search(r"an allowance of (\S+) does", out)[1]
    assert "the shipped sweep study_15k of this scale has budgets_flops=5e11,1e12,2e12,4e12,8e12" in out
    code, out, _ = command(capsys, "new", "sweep", "whole", "scale=looped_15k", f"allowance={enough}")
    assert "39 cells: 39 OK, 0 dropped" in out and "too short" not in out


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
        (["sweep=x", "scale=looped_33k"], "model=looped_33k is unknown"),
        (["sweep=x", "scale=transformer_140m"], "its kind is transformer"),
        (["sweep=x", "scale=looped_90k"], "no shipped sweep has budgets for looped_90k"),
        (["sweep=x", "scale=looped_30k", "allowance=20h"], "set cluster.device_peak_flops_per_s"),
        (["sweep=x", "scale=looped_30k", "allowance=1e13", "budgets_flops=1e12"], "leave one out"),
        (["sweep=x", "scale=looped_30k", "allowance=-3"], "allowance=-3: give FLOPs or device-hours above 0"),
        (["sweep=x", "scale=looped_30k", "allowance=1e6"], "no cell would run at budgets of"),
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
