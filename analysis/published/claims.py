"""Every claim of arXiv 2604.12946 with a verdict: what its printed numbers support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.format import number
from analysis.published import parcae
from analysis.published.comparison import (
    SizeEquivalent,
    Slope,
    published_comparison,
    run_sd,
    shares,
    size_equivalents,
    slope_within,
)

Verdict = Literal["supported", "in part", "not supported"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper, a verdict on it, and what the paper's numbers support."""

    claim: str
    verdict: Verdict
    support: str


def claims() -> list[Claim]:
    """Return every claim with its verdict, in the order of the paper's argument."""
    return [
        _parameter_efficiency(),
        _twice_its_size(),
        _equal_to_larger(),
        _perplexity(),
        _core(),
        _recurrence(),
        _tokens(),
        _mismatch(),
        _held_out(),
        _test_time(),
        _plateau(),
        _unified(),
        _stability(),
    ]


def _parameter_efficiency() -> Claim:
    core, extended = run_sd("core")[0], run_sd("extended")[0]
    return Claim(
        claim="Looped models close 23.3 to 87.5 % of the gap in Core to the next larger Transformer (29.9 to "
        "58.2 % in Core-Extended).",
        verdict="in part",
        support=f"The arithmetic holds: (25.07 - 22.42) / (25.45 - 22.42) = 0.875. From 140M, 370M and 770M "
        f"the shares are {shares('Core')} in Core, {shares('Core-Extended')} in Core-Extended and "
        f"{shares('validation loss')} of the gap in nats, so 87.5 % is the largest of nine. Models that "
        f"others trained again with this recipe have a standard deviation of {core:.2f} points of Core and "
        f"{extended:.2f} of Core-Extended a run (two pairs); with that noise the 95 % intervals in Core are "
        f"{shares('Core', interval=True)}. The larger Transformer also saw 1.7 to 2.6 times the tokens.",
    )


def _twice_its_size() -> Claim:
    last = [item for item in size_equivalents() if item.size == "770M"]
    factors = {name: _multipliers(name) for name in ("Core", "Core-Extended", "validation loss")}
    return Claim(
        claim="A looped model has up to 87.5 % of the quality of a Transformer twice its size.",
        verdict="not supported",
        support=f"The 87.5 % is a share of the gap between 770M and 1.3B, a factor of "
        f"{last[0].size_ratio:.2f} in parameters, and not of quality. Placed on the Transformers' own curve, "
        "log-linear in size, the looped models equal Transformers of "
        + ", ".join(
            f"{low:.2f} to {high:.2f} times their size ({name})" for name, (low, high) in factors.items()
        )
        + ": none reaches two, at 1.66 to 1.84 times the training FLOPs.",
    )


def _multipliers(measure: str) -> tuple[float, float]:
    values = [item.multiplier for item in size_equivalents() if item.measure == measure]
    return min(values), max(values)


def _equal_to_larger() -> Claim:
    models = parcae.table("end_to_end").set_index("size")
    looped, larger = models.loc["770M"], models.loc["1.3B"]
    nats = float(np.log(looped["looped_perplexity"] / larger["transformer_perplexity"]))
    core = next(item for item in size_equivalents() if (item.measure, item.size) == ("Core", "770M"))
    return Claim(
        claim="The looped 770M model matches the 1.3B Transformer.",
        verdict="not supported",
        support="It stays below on every measure: Core "
        f"{looped['looped_core'] - larger['transformer_core']:+.2f}, Core-Extended "
        f"{looped['looped_extended'] - larger['transformer_extended']:+.2f}, validation loss "
        f"{nats:+.4f} nats, Lambada perplexity {looped['looped_lambada']:.2f} against "
        f"{larger['transformer_lambada']:.2f}. On Core alone equality is not excluded: the share of the gap "
        f"is {_interval(core)} per cent. The loss is far apart: the whole gain of looping at 770M is "
        f"{np.log(looped['transformer_perplexity'] / looped['looped_perplexity']):.4f} nats.",
    )


def _interval(item: SizeEquivalent) -> str:
    assert item.low is not None and item.high is not None
    return f"{100 * item.share:.1f} [{100 * item.low:.0f}, {100 * item.high:.0f}]"


def _perplexity() -> Claim:
    sizes = parcae.table("end_to_end")
    cut = 100 * (1 - sizes["looped_perplexity"] / sizes["transformer_perplexity"])
    shown = ", ".join(f"{value:.1f} % ({size})" for size, value in zip(sizes["size"], cut, strict=True))
    return Claim(
        claim="Validation perplexity falls by 4.3 to 9.2 % against data-matched Transformers.",
        verdict="in part",
        support=f"The printed perplexities give {shown}. These models match in parameters and tokens, not in "
        "FLOPs: the looped ones spend 1.66 to 1.84 times as many.",
    )


def _core() -> Claim:
    gaps = parcae.core_differences()
    high = gaps[gaps["core"] >= 1.15]["budget_flops"].map(number).tolist()
    comparison = published_comparison()
    core, extended = comparison.means
    trends = comparison.trends
    return Claim(
        claim="Looped models reach 1.2 to 2.0 points more Core than fixed depth at equal FLOPs and "
        "parameters.",
        verdict="not supported",
        support=f"Of {core.rows} rows looping wins {core.wins}, ties {core.ties} and loses "
        f"{core.rows - core.wins - core.ties}; the mean is {core.points:+.2f} [{core.low:+.2f}, "
        f"{core.high:+.2f}] in Core and {extended.points:+.2f} [{extended.low:+.2f}, {extended.high:+.2f}] "
        f"in Core-Extended. Gains of 1.2 to 2.0 are those at {', '.join(high)} FLOPs, the largest budgets of "
        f"each size. That the gain grows with the budget (a slope over log C, a level per size) is "
        f"{_trend(trends['Core'])} in Core, not resolved, and {_trend(trends['Core-Extended'])} in "
        "Core-Extended. Printed spreads are over evaluation seeds; rows scatter about the trend by "
        f"{trends['Core'].residual_sd:.1f} points of Core, and Core falls from 11.2 to 10.5 between "
        "neighbouring budgets.",
    )


def _trend(slope: Slope) -> str:
    return f"{slope.slope:+.2f} ± {slope.se:.2f} points a decade (p = {slope.p_value:.2g})"


def _recurrence() -> Claim:
    parts = []
    for size, frame in parcae.table("core").groupby("size"):
        flops, best = (np.log(frame[name].to_numpy(float)) for name in ("budget_flops", "mean_recurrence"))
        trend = slope_within(flops, best, frame["size"].to_numpy(str))
        parts.append(
            f"{trend.slope:.3f} [{trend.low:.2f}, {trend.high:.2f}] over {len(frame)} budgets ({size})"
        )
    return Claim(
        claim="The optimal recurrence grows as C^0.40 (legend: 0.40 at 140M, 0.38 at 370M).",
        verdict="in part",
        support=f"The printed optima are values of the grid; their slopes are {' and '.join(parts)}, with "
        "Student's intervals from the scatter about the line. Growth is supported at 140M and 0.40 lies "
        "inside; three budgets of 370M determine nothing. Neither intervals, prefactors, the parabola's "
        "variable nor the losses are published, and each cell seems to have one seed.",
    )


def _tokens() -> Claim:
    parts = []
    for accounting in parcae.ACCOUNTINGS:
        values = " / ".join(
            f"{parcae.implied_tokens_exponent(size, accounting):.3f}" for size in ("140M", "370M")
        )
        parts.append(f"{values} under the {accounting} accounting")
    return Claim(
        claim="The optimal tokens grow as C^0.78 (legend: 0.77 at 140M, 0.78 at 370M).",
        verdict="in part",
        support="D* = C / f(µ*), so the law of µ* fixes that of D*: with the published µ* it is "
        f"{' and '.join(parts)} (140M / 370M). The printed values fit the text's way of counting, which "
        "leaves value-embedding tables out, better than the released code's, or a separate parabola in D.",
    )


def _mismatch() -> Claim:
    shown = ", ".join(
        f"{v:.1f}" if v > 1 else "below 1" for v in parcae.law_optima("140M", "released", "all")
    )
    core = parcae.table("core")
    other = parcae.law_optima("140M", "paper", "non-embedding")
    own = parcae.slope(parcae.budgets("140M"), other)
    ratio = other / core[core["size"] == "140M"]["mean_recurrence"].to_numpy(float)
    return Claim(
        claim="The training law L(µ, D) describes the same runs as the parabolas.",
        verdict="not supported",
        support=f"With all parameters counted and the released FLOPs the law is least at µ = {shown} for the "
        "budgets of 140M, where the parabolas give 2, 2, 4, 6, 8, 10. With non-embedding parameters and the "
        f"text's FLOPs the slope is {own:.2f}, near the 0.40, but the level is {ratio.min():.1f} to "
        f"{ratio.max():.1f} times as high, mostly outside the swept range. The two do not agree on the "
        "optimum outside the grid under any definition of N(µ), which the paper does not state.",
    )


def _held_out() -> Claim:
    errors = parcae.held_out_errors()
    parts = [
        f"{count}: {' / '.join(f'{v:.2f} %' for v in frame['error_percent'])}"
        for count, frame in errors.groupby("parameters counted", sort=False)
    ]
    return Claim(
        claim="The training law predicts the end-to-end models within 1.3 % (140M) and 0.8 % (370M).",
        verdict="in part",
        support=f"From the printed coefficients and perplexities, by what N counts: {'; '.join(parts)}. The "
        "size of the error is supported; no single definition gives both printed values.",
    )


def _test_time() -> Claim:
    frame = parcae.table("test_time")
    best = frame.pivot_table(index=["size", "evaluated"], columns="form", values="huber", sort=False)
    ratio = best.drop(columns=best.columns[0]).min(axis=1) / best[best.columns[0]]
    return Claim(
        claim="Loss over test-time depth follows a saturating exponential.",
        verdict="supported",
        support="Supported in rank: the exponential has the least Huber cost at both sizes, within and "
        f"beyond the depths it was fitted to, by a factor of {ratio.min():.1f} to {ratio.max():.1f} over "
        "the next form. The curves, their floors and their rates are figures only.",
    )


def _plateau() -> Claim:
    frame = parcae.table("depths").query("sampling == 'per sequence'").set_index(["size", "depth"])
    nats = np.log(frame["perplexity"])
    beyond, before = nats["350M", 16] - nats["350M", 8], nats["350M", 8] - nats["350M", 4]
    deep = nats["100M", 16] - nats["100M", 8]
    return Claim(
        claim="Gains of more loops at test time plateau near the training depth T = µ.",
        verdict="supported",
        support=f"At µ = 8 (350M) the loss changes by {before:+.3f} nats from T = 4 to 8 and by "
        f"{beyond:+.3f} from 8 to 16. At µ = 16 (100M) it still falls by {-deep:.3f} from T = 8 to 16; "
        "nothing beyond 16 is printed. The printed distance of the floor from the loss at T = µ is 0.16 % on "
        "average at 140M and 0.05 % at 370M. The curves of the four sizes are figures only.",
    )


def _unified() -> Claim:
    held = parcae.table("unified").set_index(["size", "evaluated"]).xs("held out", level="evaluated")
    ratio = held["learned_gamma"] / held["gamma_one"]
    shown = " and ".join(f"{value:.2f}" for value in ratio)
    return Claim(
        claim="Test-time decay depends on T / µ: a learned power γ is 1.19 / 1.17, and γ = 1 is adopted.",
        verdict="supported",
        support=f"Held out, learned γ costs {shown} times γ = 1 (140M, 370M), while leaving µ out costs "
        f"{(held['no_recurrence'] / held['gamma_one']).min():.2f} times or more: T / µ is supported, a power "
        "apart from 1 is not. The coefficients are not published, and the printed form has 7 parameters.",
    )


def _stability() -> Claim:
    rates = parcae.table("stability")
    reach = {name: rates[rates[name] == 1]["learning_rate"].max() for name in ("base", "residual_norm")}
    return Claim(
        claim="Training is stable by construction, because the diagonal decay keeps ρ(Ā) below 1.",
        verdict="in part",
        support="By construction the linear part contracts: exp(-Δ exp(log A)) lies between 0 and 1. That "
        "does not bound the model, whose loop also adds the blocks' output: a 1.3B run exploded after about "
        "150,000 steps with ρ(Ā) in order, until the prelude was normalised. What is printed is a wider "
        f"range: it converges at all {len(rates)} learning rates to "
        f"{number(rates['learning_rate'].max())}, the baseline to {number(reach['base'])}, with "
        f"normalised residuals to {number(reach['residual_norm'])}; one run each.",
    )
