"""Offline runs of the installed wandb, written here and read back."""

from __future__ import annotations

import contextlib
import sys
import types

import numpy as np
import pytest

from analysis import FitConfig, TableError, isoflop
from analysis.study.points import read_points
from analysis.tables.wandb_runs import frames, read_wandb
from tests.waiting import wait_for

SETTINGS = {"silent": True, "disable_git": True, "x_disable_stats": True, "console": "off"}


def write_offline(folder, run_id, config, history, summary):
    wandb = pytest.importorskip("wandb")
    run = wandb.init(
        project="study",
        dir=folder,
        mode="offline",
        id=run_id,
        config=config,
        settings=wandb.Settings(**SETTINGS),
    )
    for row in history:
        run.log(row)
    run.summary.update(summary)
    run.finish()


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Two runs; the history of the first passes the 32 KiB blocks of the file many times."""
    folder = tmp_path_factory.mktemp("wandb")
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    rows = [{"val_loss": 5.0 - step / 1000, "note": "x" * (step % 97)} for step in range(1500)]
    write_offline(folder, "a", {"flops": 1e18, "model": {"params": 10**8}}, rows, {"final.loss": 3.5})
    write_offline(folder, "b", {"flops": 2e18, "model": {"params": 2 * 10**8}}, rows[:3], {})
    patch.undo()
    wait_for(lambda: all(is_finished(path) for path in folder.rglob("run-*.wandb")))
    return folder


def is_finished(path):
    """Return True once wandb's own process has written the whole file, which may be after `finish`."""
    with contextlib.suppress(TableError):
        return set(read_wandb(str(path.parent))["state"]) == {"finished"}
    return False


def test_config_summary_and_last_metrics_are_read_back(offline):
    table = read_wandb(str(offline)).set_index("run_id")
    assert list(table.index) == ["a", "b"] and set(table["state"]) == {"finished"}
    assert table["flops"].tolist() == [1e18, 2e18]
    assert table["model.params"].tolist() == [1e8, 2e8]
    assert table["val_loss"].tolist() == pytest.approx([5.0 - 1.499, 4.998])
    assert table.loc["a", "final.loss"] == 3.5


def test_a_file_cut_short_keeps_what_came_before(offline, tmp_path):
    path = next(offline.rglob("run-a.wandb"))
    whole = list(frames(path))
    assert len(whole) > 1500
    cut = tmp_path / "run-a.wandb"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = list(frames(cut))
    assert part == whole[: len(part)]
    assert len(part) > 100


def test_columns_map_onto_keys_of_the_runs(offline):
    names = {"compute": "flops", "x": "model.params", "loss": "val_loss"}
    points = read_points(f"wandb:{offline}", names)
    assert points.frame["x"].tolist() == [1e8, 2e8]
    with pytest.raises(TableError, match=r"^columns.loss=val_los: .*did you mean val_loss\?"):
        read_points(f"wandb:{offline}", {**names, "loss": "val_los"})


def test_a_project_is_read_over_the_public_api(monkeypatch):
    """The process boundary alone is faked: wandb.Api().runs(path)."""
    budget = np.repeat([1e18, 1e19, 1e20, 1e21], 7)
    params = np.sqrt(budget / 120) * np.tile(np.geomspace(0.3, 3, 7), 4)
    loss = 1.7 + 400 * params**-0.34 + 410 * (budget / 6 / params) ** -0.28
    runs = [
        types.SimpleNamespace(
            id=f"r{i}",
            name=f"r{i}",
            state="finished",
            config={"C": c, "n": n},
            summary={"loss": y, "_step": 9},
        )
        for i, (c, n, y) in enumerate(zip(budget, params, loss, strict=True))
    ]
    # One crashed on its way and one never logged a loss.
    runs += [
        types.SimpleNamespace(
            id="bad", name="bad", state="crashed", config=runs[0].config, summary={"loss": 9}
        ),
        types.SimpleNamespace(id="none", name="none", state="finished", config=runs[0].config, summary={}),
    ]
    asked = []

    class Api:
        def runs(self, path):
            asked.append(path)
            return runs

    module = types.SimpleNamespace(Api=Api, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    points = read_points("wandb:team/study", {"compute": "C", "x": "n", "loss": "loss"})
    assert asked == ["team/study"]
    assert "_step" not in points.frame
    fit = isoflop(points, config=FitConfig(bootstrap=100, validation=False))
    assert fit.group.estimator().laws["params"].exponent == pytest.approx(0.28 / 0.62, abs=1e-6)
    assert [item.summary() for item in fit.left_out] == [
        "1 left out, state crashed: bad",
        "1 left out, without loss: none",
    ]


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(
        TableError, match=r"^data=wandb:nowhere: it must be wandb:ENTITY/PROJECT or an existing"
    ):
        read_wandb("nowhere")
    with pytest.raises(TableError, match=r"^wandb:.* holds no run$"):
        read_wandb(str(tmp_path))
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(TableError, match=r"run-x.wandb is not a wandb run$"):
        read_wandb(str(tmp_path))
