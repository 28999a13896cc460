"""`plan design=true`: what the planned grid would resolve, and the assumptions of all designs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis import serialize
from analysis.config import Array, FitConfig, Progress
from analysis.design import simulate
from analysis.design.fisher_information import FisherInformation
from analysis.design.ground_truth import REACH, GroundTruth, at_published_optima, fitted, published
from analysis.design.power import DesignConfig, PowerAnalysis
from analysis.design.simulate import Grid, Noise
from analysis.design.studies import analyse_power
from analysis.format import number
from analysis.isoflop.geometry import MIN_BUDGETS
from analysis.result_files import write_result
from analysis.stats.noise import noise_floor
from analysis.tables.readers import read_tables
from analysis.tables.selection import groups, select
from model.config_validation import ConfigError, build
from sweeps.config.next_command import command_line
from sweeps.config.study import StudyConfig
from sweeps.planning.plan import plan

if TYPE_CHECKING:
    import pandas as pd


class SpeedUnknown(ConfigError):
    """Device-hours cannot be converted to FLOPs: nothing was measured and no peak is known."""


def design(study: StudyConfig, progress: Progress = lambda stage, done: None) -> tuple[PowerAnalysis, ...]:
    """Return what the planned grid would resolve under each law of `assume.law`; writes nothing."""
    frame = planned_runs(study)
    grid = simulate.grid(frame, FitConfig().parameter_count)
    noise, config = assumed_noise(study, frame), design_config(study, grid)
    return tuple(analyse_power(grid, law, noise, config, progress) for law in assumed_laws(study, grid))


def check_reachable(knowledge: FisherInformation) -> None:
    """Raise ConfigError if no choice of cells can bracket three optima under any of the laws."""
    logs = np.log(knowledge.recurrences)
    within = (knowledge.optima > logs.min()) & (knowledge.optima < logs.max())
    if (within.sum(1) >= MIN_BUDGETS).any():
        return
    budgets, first = knowledge.budgets_flops, np.exp(np.clip(knowledge.optima[0], *np.log(REACH)))
    raise ConfigError(
        f"fewer than {MIN_BUDGETS} budgets have their optimum within µ = {np.exp(logs.min()):g} to "
        f"{np.exp(logs.max()):g}: at {number(budgets[0])} FLOPs the law has it at {first[0]:.3g}, at "
        f"{number(budgets[-1])} at {first[-1]:.3g}; offer others with assume.budgets_flops=[...] or "
        "assume.recurrences=[...]"
    )


def write_design(
    results: Sequence[PowerAnalysis], folder: Path, name: str = "design", labels: Sequence[str] = ()
) -> Path:
    """Write NAME.json and the figure (PDF, PNG, CSV) into `folder`; return it."""
    from analysis.figures.design import design_figure
    from analysis.figures.style import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder / f"{name}.json", serialize.to_json(results) + "\n")
    save_figure(replace(design_figure(results, labels), name=name), folder)
    return folder


def planned_runs(study: StudyConfig) -> pd.DataFrame:
    """Return the accepted cells of the plan.

    Raises
    ------
    ConfigError : there are none, or they are of several groups.
    """
    accepted = plan(study).accepted
    if accepted.empty:
        raise ConfigError(f"no cell of sweep {study.sweep.name} would run: loopscale plan shows the reasons")
    return one_group(accepted)


def one_group(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs but for plain transformers, which lie on no isoFLOP curve over µ, renumbered.

    Raises
    ------
    ConfigError : they are of several groups, which share no law.
    """
    split = groups(runs[runs["kind"] != "transformer"]) or groups(runs)
    if len(split) > 1:
        labels = "; ".join(label for label, _ in split)
        raise ConfigError(
            f"the sweep has {len(split)} groups of runs and a design is for one: {labels}; "
            "choose one scale and one value of every other axis"
        )
    return split[0][1].reset_index(drop=True)


def assumed_laws(study: StudyConfig, grid: Grid) -> list[GroundTruth]:
    """Return the laws that `assume.law` names.

    Raises
    ------
    ConfigError : a name is neither "paper" nor "paper_optima" nor a file.
    """
    assume, scale, laws = study.assume, str(grid.runs["scale"].iloc[0]), []
    names = assume.law or "paper"
    for name in [names] if isinstance(names, str) else names:
        if name in ("paper", "paper_optima"):
            law = published(scale, grid.runs, assume.parameter_count)
        elif Path(name).is_file():
            law = fitted(Path(name), grid.runs, assume.parameter_count)
        else:
            raise ConfigError(
                f"assume.law={name}: choose paper, paper_optima, or a laws.json of loopscale fit"
            )
        law = replace(law, coupling=assume.coupling, loop_power=law.loop_power * assume.loop_power)
        laws.append(at_published_optima(law, scale, grid.shape) if name == "paper_optima" else law)
    return laws


def assumed_noise(study: StudyConfig, frame: pd.DataFrame) -> Noise:
    """Return the noise that `assume` states; seed noise comes from the table `assume.noise_from` if set."""
    assume, seed_nats = study.assume, study.assume.seed_nats
    if assume.noise_from is not None:
        scale = set(frame["scale"])
        runs = select(read_tables(Path(assume.noise_from))[0], study.sweep.max_epochs).runs
        floor = noise_floor(runs[runs["scale"].isin(scale)] if runs["scale"].isin(scale).any() else runs)
        if floor.sd_nats is None:
            raise ConfigError(f"assume.noise_from={assume.noise_from}: {floor.summary()}")
        seed_nats = floor.sd_nats
    return Noise(
        seed_nats=seed_nats,
        trunk_nats=assume.trunk_nats,
        evaluation_nats=assume.evaluation_nats,
        tail=assume.tail,
    )


def allowance_flops(study: StudyConfig, frame: pd.DataFrame, otherwise: float) -> float:
    """Return `study.allowance` in FLOPs; device-hours, as in 300h, are converted at the plan's own speed.

    Parameters
    ----------
    frame : the cells of the plan.
    otherwise : returned if the study has no allowance.
    """
    allowance = study.allowance
    if allowance is None:
        return otherwise
    if isinstance(allowance, str):
        hours, total = allowance.removesuffix("h"), float(frame["hours"].sum(min_count=1))
        if not allowance.endswith("h") or not hours.replace(".", "", 1).isdigit():
            raise ConfigError(f"allowance={allowance}: give FLOPs, as 5e20, or device-hours, as 300h")
        if np.isnan(total):
            raise SpeedUnknown(
                f"allowance={allowance}: the speed of the plan's runs is unknown; "
                "set cluster.device_peak_flops_per_s (in the cluster's file), time it "
                f"({command_line('plan', study.overrides, 'calibrate=true')}), or give FLOPs"
            )
        allowance = float(hours) * float(frame["nominal_flops"].sum()) / total
    return float(allowance)


def budget_ladder(budgets: Array, beyond: float) -> list[float]:
    """Return budgets a factor of two apart from the least to `beyond` times the largest."""
    low, high = float(budgets.min()), beyond * float(budgets.max())
    return [low * 2.0**k for k in range(int(np.floor(np.log2(high / low) + 1e-9)) + 1)]


def design_config(study: StudyConfig, grid: Grid) -> DesignConfig:
    """Return the settings of the simulation."""
    assume = study.assume
    return build(
        DesignConfig,
        {
            "studies": assume.studies,
            "analysts": assume.analysts,
            "bootstrap": assume.bootstrap,
            "seed": assume.seed,
            "target_flops": assume.target_flops or 4 * float(grid.cells.budgets_flops.max()),
            "margin_nats": assume.margin_nats,
        },
        "assume.",
    )


def narrowed_target(study: StudyConfig, config: DesignConfig) -> float | None:
    """Return the budget of the optimum to narrow, None for the exponent."""
    return config.target_flops if study.assume.quantity == "optimum" else None
