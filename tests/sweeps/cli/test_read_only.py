"""A sweep that one may only read: its state is shown, its laws are fitted, and results go elsewhere."""

import json
from pathlib import Path

import pytest

import loopscale
from harness.storage.files import exclusive, is_held
from tests.analysis.synthetic import INSIDE, study
from tests.permissions import permissions_hold

QUICK = ("bootstrap=100", "validation=false")


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The root of a colleague's collected sweep `small`, all read-only; the working directory is ours."""
    folder = tmp_path / "theirs" / "small"
    folder.mkdir(parents=True)
    runs, depths = study(budgets=INSIDE[:2], recurrences=(2, 4), replicates=((0, 0),))
    runs.to_parquet(folder / "runs.parquet")
    depths.to_parquet(folder / "depths.parquet")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "ours")
    return folder.parent


def test_results_go_to_the_working_directory_and_are_named(theirs, capsys, drawn_glyphs):
    sweep = ["sweep=small", f"root={theirs}"]
    with permissions_hold():
        loopscale.main(["fit", *sweep, *QUICK])
        assert f"{theirs / 'small'} may not be written: results go to ./small" in capsys.readouterr().err
        loopscale.main(["compare", *sweep, "bootstrap=100"])
    assert ": small/looped_vs_fixed.pdf" in capsys.readouterr().out
    assert json.loads(Path("small/laws.json").read_text())["groups"]
    assert json.loads(Path("small/comparison.json").read_text())["rows"]
    assert Path("small/looped_vs_fixed.png").is_file()
    assert sorted(path.name for path in (theirs / "small").iterdir()) == ["depths.parquet", "runs.parquet"]


def test_results_go_where_out_says_and_stay_as_they_are(theirs, capsys):
    loopscale.main(["fit", "sweep=small", f"root={theirs}", "out=results/of_mine", *QUICK])
    assert "may not be written" not in capsys.readouterr().err
    before = content(Path("results"))
    assert list(before) == [Path("results/of_mine/laws.json")]
    loopscale.main(["fit", f"data={theirs / 'small'}", "out=results/of_mine", *QUICK])
    assert content(Path("results")) == before
    assert not Path("small").exists()


def test_a_lock_that_may_only_be_read_is_seen(tmp_path):
    path = tmp_path / "lease"
    assert not is_held(path)
    path.touch(mode=0o444)
    with permissions_hold():
        assert not is_held(path)
    path.chmod(0o644)
    with exclusive(path, wait=False) as free:
        assert free
        path.chmod(0o444)
        with permissions_hold():
            assert is_held(path)
        assert is_held(path)
    path.chmod(0o644)
    with exclusive(path, wait=False) as free:
        assert free


def test_status_of_a_sweep_that_may_only_be_read(finished, capsys):
    """The lease of a run that was killed while it ran is looked at, not opened for writing."""
    run = next(path for path in sorted(finished.iterdir()) if (path / "status.json").exists())
    state = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(state | {"state": "running"}))
    for path in [*finished.rglob("*"), finished]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = content(finished)
    with permissions_hold():
        loopscale.main(["status", "sweep=tiny", f"root={finished.parent}", "format=json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["run_id"]: row["status"] for row in rows}[run.name] == "lost"
    assert content(finished) == before
