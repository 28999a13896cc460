"""What comes after the report of a launched sweep: runs that narrow its law, or a grid that can give one."""

from __future__ import annotations

import math
from typing import Any

from harness.storage.files import read_json
from model.config_validation import ConfigError
from sweeps.config.commands import LAWS, CompareConfig, FitTableConfig
from sweeps.config.compose import compose_study
from sweeps.config.next_command import command_line, next_command
from sweeps.config.study import StudyConfig
from sweeps.state.ledger import read_ledger

FACTOR = 4.0  # between the budgets of a grid without a law and those that are proposed


def after_report(settings: CompareConfig) -> list[str]:
    """Return the line that names the next command, after a reason if there is no law; none of other data."""
    if not _is_launched(settings):
        return []
    if (remedy := without_law(settings)) is None:
        return [next_command("plan", _overrides(settings), "suggest=8")]
    reason, command = remedy
    return [reason, f"next: {command}"] if command else [reason]


def without_law(settings: FitTableConfig) -> tuple[str, str] | None:
    """Return why a launched sweep has no law and the command that plans a grid which may; None if it has one.

    The command is "" where the sweep's own files are not found from here.
    """
    from analysis.isoflop.geometry import MIN_BUDGETS
    from sweeps.planning.known_optima import on_budgets

    if not _is_launched(settings):
        return None
    groups = read_json(settings.results / LAWS)["groups"]
    laws = [law for estimator in _estimators(groups) for law in estimator["laws"].values()]
    if any(law["exponent"] for law in laws):
        return None
    overrides = _overrides(settings)
    try:
        study = compose_study(overrides)
    except ConfigError:
        return "no law", ""
    sweep = study.sweep
    if side := _side(groups):
        moved = on_budgets(sweep, _moved_budgets(study, side))
        return (
            f"no law: most optima lie {side} the recurrences of the grid. They rise with the budget, so try "
            f"{'larger' if side == 'below' else 'smaller'} ones{_price([*overrides, *moved])}",
            command_line("plan", overrides, *moved),
        )
    curves = sum(optimum["value"] is not None or _lacks_minimum(optimum) for optimum in _optima(groups))
    if curves < MIN_BUDGETS:
        return "no law: the grid is too small for one, and its plan says what it lacks", command_line(
            "plan", overrides
        )
    seeds = f"sweep.seeds=[{','.join(map(str, range(2 * len(sweep.seeds) + 1)))}]"
    return (
        "no law: the noise hides the minima of too many curves, so try more seeds"
        + _price([*overrides, seeds]),
        command_line("plan", overrides, seeds),
    )


def _price(overrides: list[str]) -> str:
    """Return in words what a proposed sweep leaves to train, "" where its plan is refused and says why."""
    from sweeps.planning.plan import plan

    try:
        total = plan(compose_study(overrides)).totals()
    except ConfigError:
        return ""
    hours = total["remaining_hours"]
    known = "" if math.isnan(hours) else f", {hours:.3g} device-hours"
    return f" ({total['remaining_flops']:.3g} FLOPs{known})"


def _moved_budgets(study: StudyConfig, side: str) -> list[float]:
    """Return the budgets to try where most optima lie on a side of the recurrences.

    They are those that `new` and `plan` name by the shipped law of the scale, if they lie on the right side
    of the study's own; else its own, larger or smaller by `FACTOR`.
    """
    from sweeps.planning.known_optima import optima_outside, shipped_window

    own, larger = study.sweep.budgets_flops, side == "below"
    missed = optima_outside(study, shipped_window(study))
    if missed and missed.better and (max(missed.better[1]) > max(own)) == larger:
        return missed.better[1]
    return [flops * (FACTOR if larger else 1 / FACTOR) for flops in own]


def _is_launched(settings: FitTableConfig) -> bool:
    """Return True for a sweep that was launched, which other data is not, and has been fitted."""
    is_sweep = settings.data is None and (settings.folder / "sweep.json").exists()
    return is_sweep and (settings.results / LAWS).exists()


def _overrides(settings: FitTableConfig) -> list[str]:
    """Return the overrides of the sweep's last launch, on the root where it is now."""
    overrides = read_ledger(settings.folder).overrides or [f"sweep={settings.sweep}"]
    return [*overrides, *([] if settings.root == FitTableConfig.root else [f"root={settings.root}"])]


def _optima(groups: list[Any]) -> list[Any]:
    """Return the optima of the recurrence by the first estimator, of all groups."""
    return [one for group in groups for one in group["estimators"][0]["optima"].get("mean_recurrence", [])]


def _lacks_minimum(optimum: Any) -> bool:
    """Return True if a curve was fitted and its minimum refused."""
    return "minimum" in str(optimum["refusal"])


def _side(groups: list[Any]) -> str:
    """Return on which side of the grid most optima lie, "" if on neither."""
    refusals = [
        str(one["refusal"])
        for item in _estimators(groups)
        for one in item["optima"].get("mean_recurrence", [])
    ]
    counts = {side: sum(f"lies {side} the swept" in text for text in refusals) for side in ("below", "above")}
    if counts["below"] == counts["above"]:
        return ""
    return max(counts, key=lambda side: counts[side])


def _estimators(groups: list[Any]) -> list[Any]:
    return [estimator for group in groups for estimator in group["estimators"]]
