"""What a pursuit may choose from: its question, its allowance in FLOPs and the cells that can be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.format import number
from analysis.pursuit.policy import PILOT_BUDGETS, Policy, ladder
from analysis.pursuit.question import Question
from model.config_validation import ConfigError
from sweeps.config.study import StudyConfig
from sweeps.planning.design import allowance_flops, planned_runs
from sweeps.planning.new_grid import least_budget
from sweeps.planning.plan import plan

if TYPE_CHECKING:
    import pandas as pd

NAME = "pursuit"  # of a pursuit without a sweep
QUESTIONS = {
    "exponent": Question(asked="exponent"),
    "exponent_tokens": Question(asked="exponent", quantity="tokens"),
    "optimum": Question(asked="optimum"),
    "optimum_tokens": Question(asked="optimum", quantity="tokens"),
}
LATER = {
    "looped_or_fixed": "loopscale plan design=true gives the power of a grid, loopscale compare the answer",
    "multiplier": "plan a ladder (docs/laws.md) and ask loopscale compare against=transformer",
    "rate": "sweep optimizer.adamw_learning_rate as an axis and fit law=envelope",
}


def question_of(study: StudyConfig) -> Question:
    """Return the question of a command; raises ConfigError for one that is not pursued."""
    if study.question in LATER:
        raise ConfigError(f"question={study.question} is not pursued yet: {LATER[study.question]}")
    question = QUESTIONS[study.question]
    if question.asked == "exponent":
        return question
    if study.assume.target_flops is None:
        raise ConfigError(f"question={study.question}: at which budget? set assume.target_flops=...")
    return replace(question, target_flops=study.assume.target_flops)


def named(study: StudyConfig) -> StudyConfig:
    """Return the study with a name and without a grid or control: a pursuit chooses its own cells."""
    sweep = replace(study.sweep, name=study.sweep.name or NAME, control="none", cells={}, seeds=[0])
    if study.sweep.axes or len(study.runs) > 1:
        raise ConfigError("a pursuit is of one scale and has no axes: choose one with model=NAME")
    return replace(study, sweep=replace(sweep, tokens=[], tokens_per_param=[]))


def offer(study: StudyConfig) -> tuple[Policy, pd.DataFrame]:
    """Return the policy of a named study and the planned runs of all its cells, of one seed.

    Raises
    ------
    ConfigError : there is no allowance, or it pays for no pilot of runs that are long enough.
    """
    if study.allowance is None:
        raise ConfigError("how much may it spend? set allowance=FLOPs, as 5e20, or device-hours, as 300h")
    question, recurrences = question_of(study), sorted(study.assume.recurrences)
    grid = replace(study, sweep=replace(study.sweep, mean_recurrences=recurrences))
    spend = allowance_flops(study, _timed(grid), 0.0) if isinstance(study.allowance, str) else study.allowance
    budgets = study.assume.budgets_flops or list(ladder(float(spend)))
    planned = plan(replace(grid, sweep=replace(grid.sweep, budgets_flops=sorted(budgets)))).frame
    whole = planned.groupby("target_flops")["verdict"].agg(lambda verdicts: bool((verdicts == "OK").all()))
    kept = [float(flops) for flops in whole.index[whole]]
    if len(kept) <= PILOT_BUDGETS:
        reasons = planned.loc[planned["verdict"] != "OK", "reason"]
        raise ConfigError(
            f"allowance={number(float(spend))} FLOPs offers {len(kept)} budgets, a pursuit needs "
            f"{PILOT_BUDGETS + 1}; {reasons.iloc[0]}: raise allowance, or offer other cells with "
            "assume.budgets_flops=[...] and assume.recurrences=[...]"
        )
    runs = planned_runs(replace(grid, sweep=replace(grid.sweep, budgets_flops=kept)))
    policy = Policy(
        question=question,
        target_width=study.target_width,
        allowance_flops=float(spend),
        recurrences=tuple(recurrences),
        budgets_flops=tuple(kept),
        max_seeds=max(study.assume.max_seeds, Policy.max_seeds),
        seed=study.runs[next(iter(study.runs))].seed,
    )
    return policy, runs


def _timed(grid: StudyConfig) -> pd.DataFrame:
    """Return planned runs whose hours convert device-hours to FLOPs: of the least budget for all cells."""
    least = least_budget(grid)
    return plan(replace(grid, sweep=replace(grid.sweep, budgets_flops=[least]))).accepted
