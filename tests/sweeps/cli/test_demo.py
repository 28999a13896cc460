"""The demo in miniature: from text to a report, killed in the middle, run again."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import loopscale
from sweeps.cli import demo
from sweeps.config.commands import CompareConfig
from sweeps.state.ledger import read_ledger
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def overrides(corpus, cache, tmp_path):
    """The quick demo's grid, cut down to seconds, on the small corpus."""
    return [
        f"root={tmp_path / 'runs'}",
        f"cache={cache}",
        "data=text",
        f"path={corpus}",
        "data.vocabulary_size=300",
        "data.validation_fraction=0.2",
        "model.sequence_length=32",
        "training.batch_sequences=4",
        "sweep.name=small",
        "sweep.budgets_flops=[4e8,8e8]",
        "sweep.mean_recurrences=[2,4,6,8]",
        "sweep.cells.noise_low.lengths=[4e8]",
        "sweep.cells.noise_low.mean_recurrences=[4]",
        "sweep.cells.noise_high.lengths=[8e8]",
        "sweep.min_steps=2",
        "training.log_every=1",
        "sweep.max_epochs=2",
        "evaluation.blocks=8",
        "evaluation.max_depth=8",
        "cluster.parallel_runs=1",  # every worker imports torch
    ]


def test_a_killed_demo_continues_and_reports(overrides, tmp_path, capsys, monkeypatch, drawn_glyphs):
    folder = tmp_path / "runs" / "small"
    command = [sys.executable, "-m", "loopscale", "demo", *overrides]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: first.poll() is not None or list(folder.glob("*/depth_curve.json")))
    assert first.poll() is None, "the demo ended before it could be killed"
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = {
        run.run_id: run.record() for run in read_ledger(folder).runs(folder) if run.status().state == "done"
    }
    quick = functools.partial(CompareConfig, bootstrap=100, validation=False)
    monkeypatch.setattr(demo, "CompareConfig", quick)
    page = loopscale.demo(overrides)
    out = capsys.readouterr().out.splitlines()
    runs = read_ledger(folder).runs(folder)
    assert len(runs) == 10 + 4 and all(run.status().state == "done" for run in runs)
    assert all(
        run.status().attempts == 1 and run.record() == done[run.run_id] for run in runs if run.run_id in done
    )
    *_, recurrence, tokens, verdict, plateau, last = out
    for line, start in (
        (recurrence, "Optimal mean recurrence, "),
        (tokens, "Optimal tokens, "),
        (verdict, "Looped minus fixed depth at equal FLOPs, of 2 budgets: "),
        (plateau, "Test-time depth: "),
    ):
        assert line.startswith(start)
    assert last == f"report: {page}; next: loopscale plan sweep=small suggest=8 root={tmp_path / 'runs'}"
    assert "<html" in page.read_text() and "next: loopscale plan " in page.read_text()
    figures = {path.suffix for path in (page.parent / "figures").iterdir()}
    assert figures == {".pdf", ".png", ".csv"}
    laws = loopscale.fit([f"root={tmp_path / 'runs'}", "sweep=small", "bootstrap=100", "validation=false"])
    assert json.loads(laws.to_json()) == json.loads((folder / "laws.json").read_text())
