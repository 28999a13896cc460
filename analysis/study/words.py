"""Results in words: the summary that `fit` prints and the three lines that a demo ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.format import error, fixed
from analysis.isoflop.curves import QUANTITY_NAMES, SYMBOLS

if TYPE_CHECKING:
    from analysis.study.holdout import Validation
    from analysis.study.sensitivity import Variant
    from analysis.study.study import StudyFit


def summary(study: StudyFit) -> str:
    """Return the whole result as plain text."""
    lines = [
        f"{study.runs_used} runs used, {len(study.left_out)} left out "
        f"(tables {study.runs_digest}, {study.depths_digest})",
        study.noise.summary(),
        *(f"  left out: {item.run_id}, {item.reason}" for item in study.left_out),
        *(f"  skipped: {item}" for item in study.skipped),
    ]
    for group in study.groups:
        lines += [
            "",
            f"{group.label}: {group.runs} runs at {len(group.budgets_flops)} budgets",
            group.summary(),
        ]
    lines += ["", *_depth(study), *(f"{text}" for item in study.run_laws for text in ("", item.summary()))]
    if study.validation is not None:
        lines += ["", *held_out(study.validation)]
    if study.sensitivity is not None:
        lines += ["", *variants(study.sensitivity)]
    lines += ["", "Checks"]
    verdict = {True: "yes", False: "NO", None: "cannot tell"}
    lines += [f"  {verdict[check.holds]}: {check.name} ({check.numbers})" for check in study.checks]
    return "\n".join(lines)


def held_out(validation: Validation) -> list[str]:
    """Return how the laws predict what they did not see, one line per prediction."""
    lines = ["Prediction of what was left out (prediction minus loss, mean and mean size)"]
    for kind, row in validation.rows():
        if row.bias_nats is None or row.error_nats is None or row.error_percent is None:
            lines.append(f"  {kind}, {row.left_out}: refused: {row.refusal}")
        else:
            errors = f"{error(row.bias_nats)}, {error(row.error_nats)} nats, {error(row.error_percent)} %"
            lines.append(f"  {kind}, {row.left_out}: {errors} ({row.points} points; {row.group})")
    return lines


def variants(found: Sequence[Variant]) -> list[str]:
    """Return the exponents under other choices, one line per choice and quantity."""
    lines = ["Exponents under other choices (– where the law is refused)"]
    for variant in found:
        for quantity, values in variant.exponents.items():
            cells = ", ".join(f"{name} {fixed(value, 3) if value else '–'}" for name, value in values.items())
            lines.append(f"  {variant.group}, {variant.choice}, {SYMBOLS[quantity]}: {cells}")
    return lines


def _depth(study: StudyFit) -> list[str]:
    depth = study.depth
    if not depth.curves:
        return ["Test-time depth: no depth curve in the tables"]
    lines = [f"Test-time depth, L(T) = L_inf + Z exp(-z T): {depth_line(study)}"]
    for row in depth.by_recurrence:
        if row.rate is None:
            lines.append(f"  µ = {row.mean_recurrence:g}: none of {row.curves} curves identifies z")
            continue
        spread = f" ± {row.rate_times_recurrence_sd:.2f}" if row.rate_times_recurrence_sd is not None else ""
        lines.append(
            f"  µ = {row.mean_recurrence:g}: z = {row.rate:.3f}, "
            f"z µ = {row.rate_times_recurrence:.2f}{spread} ({row.fitted} of {row.curves} curves)"
        )
    return lines + [f"  refused: {c.run_id}, {c.fit.refusal}" for c in depth.curves if c.fit.refusal]


def depth_line(study: StudyFit) -> str:
    """Say in one phrase what the depth curves show."""
    depth = study.depth
    fitted = f"{len(depth.fitted)} of {len(depth.curves)} curves fitted"
    if depth.slope is None or depth.slope_low is None or depth.slope_high is None:
        return f"{fitted}; no law of z over µ: {depth.refusal}"
    constant = depth.slope_low <= -1 <= depth.slope_high
    verdict = "consistent with a constant z µ" if constant else "so z µ is not constant"
    return (
        f"{fitted}; z falls as µ^{depth.slope:.3f} [{depth.slope_low:.3f}, {depth.slope_high:.3f}], {verdict}"
    )


def headlines(study: StudyFit) -> list[str]:
    """Return the laws, or the refusals with their reasons, in at most three lines."""
    lines = []
    for quantity in study.groups[0].quantities if study.groups else ():
        parts = [f"{group.label}: {group.headline(quantity)}" for group in study.groups]
        lines.append(f"Optimal {QUANTITY_NAMES[quantity]}, {'; '.join(parts)}")
    if not lines:
        lines.append(f"No isoFLOP law: {'; '.join(study.skipped)}")
    return [*lines, f"Test-time depth: {depth_line(study)}; {study.noise.summary()}"]
