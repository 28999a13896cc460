"""What comes after the report of a launched sweep: runs that narrow its law, or a grid that can give one."""

from __future__ import annotations

from typing import Any

from harness.storage.files import read_json
from sweeps.config.commands import LAWS, CompareConfig
from sweeps.config.next_command import next_command
from sweeps.state.ledger import read_ledger

FACTOR = 4.0  # between the budgets of a grid without a law and those that are proposed


def after_report(settings: CompareConfig) -> list[str]:
    """Return the line that names the next command, after a reason if there is no law; none of other data."""
    path = settings.results / LAWS
    if settings.data is not None or not (settings.folder / "sweep.json").exists() or not path.exists():
        return []
    overrides = read_ledger(settings.folder).overrides or [f"sweep={settings.sweep}"]
    root = [] if settings.root == CompareConfig.root else [f"root={settings.root}"]
    groups = read_json(path)["groups"]
    laws = [law for estimator in _estimators(groups) for law in estimator["laws"].values()]
    if any(law["exponent"] for law in laws):
        return [next_command("plan", overrides, "suggest=8", *root)]
    side = _side(groups)
    if not side:
        return []
    larger = side == "below"
    budgets = [flops * (FACTOR if larger else 1 / FACTOR) for flops in groups[0]["budgets_flops"]]
    written = ",".join(f"{flops:.6g}".replace("e+", "e") for flops in budgets)
    return [
        f"no law: most optima lie {side} the recurrences of the grid. They rise with the budget, so try "
        f"{'larger' if larger else 'smaller'} ones",
        next_command("plan", overrides, f"sweep.budgets_flops=[{written}]", *root),
    ]


def _side(groups: list[Any]) -> str:
    """Return on which side of the grid most optima lie, "" if on neither."""
    refusals = [
        str(one["refusal"]) for item in _estimators(groups) for one in item["optima"]["mean_recurrence"]
    ]
    counts = {side: sum(f"lies {side} the swept" in text for text in refusals) for side in ("below", "above")}
    if counts["below"] == counts["above"]:
        return ""
    return max(counts, key=lambda side: counts[side])


def _estimators(groups: list[Any]) -> list[Any]:
    return [estimator for group in groups for estimator in group["estimators"]]
