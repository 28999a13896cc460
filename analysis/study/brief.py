"""A study in a few lines: what was used, the optima by the default estimator, and the laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from analysis.format import number, plural
from analysis.isoflop.curves import SYMBOLS
from analysis.isoflop.group import GroupFit
from analysis.study.study import StudyFit


def brief(study: StudyFit) -> str:
    """Return what the study used and the optima of every group, what limits them, and last the laws."""
    reasons = Counter(item.reason.split(" (")[0] for item in study.left_out)
    left_out = "".join(f"; {count} left out, {reason}" for reason, count in reasons.items())
    lines = [f"{plural(study.runs_used, 'run')} used{left_out}", study.noise.summary()]
    for group in study.groups:
        lines += _optima(group)
    lines += [f"{law.group}, {law.fit.headline()}" if law.fit else law.summary() for law in study.run_laws]
    lines += [f"check, {check.summary()}" for check in study.checks if check.holds is False]
    return "\n".join([*lines, "", *study.headlines()])


def _optima(group: GroupFit) -> Iterator[str]:
    """Yield the optima of one group by the default estimator, and its flags."""
    estimator = group.estimator()
    size = f"{plural(group.runs, 'run')} at {plural(len(group.budgets_flops), 'budget')}"
    yield f"{group.label}: {size}; by {estimator.name}"
    if estimator.refusal:
        yield f"  refused: {estimator.refusal}"
    for row in zip(*estimator.optima.values(), strict=True):
        found = (
            f"{SYMBOLS[name]} {optimum.short_summary()}"
            for name, optimum in zip(estimator.optima, row, strict=True)
        )
        yield f"  {number(row[0].budget_flops)} FLOPs: {'; '.join(found)}"
    yield from (f"  flag: {flag}" for flag in group.flags)
