"""The live page of a sweep: every run in its cell, failures with their reasons, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from sweeps.cli.live_page import grid, live_page, write_live_page
from sweeps.config.commands import StatusConfig
from sweeps.state.eta import Forecast
from sweeps.state.sweep_status import SweepStatus
from tests.browser import needs_chromium, problems

VOID = {"meta", "line", "input", "br", "hr", "img", "link"}


def row(run_id: str, mu: float, status: str, loss: float | None = None, **more) -> dict:
    return {
        "run_id": run_id,
        "trunk_id": "",
        "scale": "tiny",
        "kind": "fixed" if mu == 1 else "looped",
        "mean_recurrence": mu,
        "target_flops": 1e10,
        "nominal_flops": 1e10,
        "seed": 0,
        "tokens": 4000,
        "status": status,
        "attempts": 1,
        "first_step": 0,
        "step": 100 if status == "done" else 40,
        "steps": 100,
        "val_loss_nats": loss,
        "train_loss_nats": None,
        "tokens_per_s": 1000.0,
        "message": "",
    } | more


ROWS = [
    row("fixed-a", 1, "done", 3.5),
    row("low-b", 2, "done", 3.0),
    row("busy-c", 4, "running"),
    row("bad-d", 6, "failed (oom)", message="out of <memory> & time"),
    row("late-e", 2, "planned", target_flops=2e10, nominal_flops=2e10, step=0, tokens_per_s=None),
]


def state(rows: list[dict] = ROWS) -> SweepStatus:
    forecast = Forecast(remaining_flops=2.6e10, remaining_run_hours=0.5, ends_in_s=1800.0, running=1)
    return SweepStatus(sweep="tiny", rows=rows, trunks=[], axes=[], notes=[], forecast=forecast)


class Balanced(HTMLParser):
    """Raises AssertionError where an element is closed that was not opened last."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_each_run_its_state_and_the_reason_of_a_failure(tmp_path):
    page = live_page(state(), tmp_path, live=True)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    for one in ROWS:
        assert f'title="{one["run_id"]}: ' in page
    assert "out of &lt;memory&gt; &amp; time" in page and "<memory>" not in page
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "2 done" in page and "1 failed" in page and "30:00" in page
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", page)  # nothing is fetched


def test_flops_and_hours_spent_are_those_of_the_steps_done(tmp_path):
    page = re.sub(r"\s+", " ", live_page(state(), tmp_path, live=False))
    # 1e10 + 1e10 done, 40 of 100 steps of two others, nothing of the last; in all 6e10.
    assert "<dt>FLOPs spent</dt><dd>2.8e+10</dd>" in page
    assert "<dt>FLOPs left</dt><dd>3.2e+10</dd>" in page
    hours = (4000 + 4000 + 1600 + 1600) / 1000 / 3600
    assert f"<dt>run-hours spent</dt><dd>{hours:.3g}</dd>" in page
    assert "refresh" not in page


def test_a_cell_is_ranked_among_the_runs_of_its_budget_and_replicates_stand_together():
    rows = [row("a", 2, "done", 3.0), row("b", 4, "done", 4.0), row("c", 4, "done", 3.5, seed=1)]
    shown = grid("", [*rows, row("d", 2, "done", 9.0, target_flops=2e10)])
    assert shown["headings"] == ["µ = 2", "µ = 4"]
    assert [line["heading"] for line in shown["lines"]] == ["1e+10 FLOPs", "2e+10 FLOPs"]
    assert [[run["rank"] for run in cell] for cell in shown["lines"][0]["cells"]] == [[0.0], [1.0, 0.5]]
    assert [[run["rank"] for run in cell] for cell in shown["lines"][1]["cells"]] == [[0.0], []]


@pytest.mark.parametrize("torn", ["", '{"step": 99, "train_lo'])
def test_curves_come_from_the_metrics_also_while_a_line_is_written(tmp_path, torn):
    lines = [{"step": step, "train_loss_nats": 8 - step / 20} for step in range(0, 41, 10)]
    (tmp_path / "busy-c").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "busy-c" / "metrics.jsonl").write_text(text + torn)
    page = live_page(state(), tmp_path, live=True)
    points = re.search(r'<polyline class="running" points="([^"]+)">', page)[1].split()
    assert len(points) == 5
    assert "busy-c: 6.0000 nats after 40 of 100 steps" in page


def test_the_page_is_written_where_the_user_says(tmp_path):
    assert StatusConfig(sweep="s", root=str(tmp_path), html=True).page == tmp_path / "s" / "status.html"
    assert StatusConfig(sweep="s").page is None
    path = StatusConfig(sweep="s", html=str(tmp_path / "page.html")).page
    write_live_page(state(), tmp_path, path, live=False)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@needs_chromium
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_its_screen(width, tmp_path):
    page = tmp_path / "status.html"
    write_live_page(state(), tmp_path, page, live=False)
    assert problems(page, width, tmp_path) == []
