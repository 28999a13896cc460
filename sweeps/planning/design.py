"""`plan design=true`: what the planned grid would resolve, and what designs are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import serialize as plain
from analysis.config import FitConfig
from analysis.design.fisher_information import Information
from analysis.design.ground_truth import REACH, Generator, at_published_optima, fitted, published
from analysis.design.power import DesignConfig, Resolution
from analysis.design.simulate import Grid, Noise, grid
from analysis.design.studies import Progress, resolve
from analysis.format import number
from analysis.isoflop.power_law import MIN_BUDGETS
from analysis.stats.noise import noise_floor
from analysis.tables.selection import groups, read_tables, select
from harness.storage.files import write_text
from model.config_validation import ConfigError, build
from sweeps.config.study import StudyConfig
from sweeps.planning.plan import plan

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[np.float64]]


def design(study: StudyConfig, progress: Progress = lambda stage, done: None) -> tuple[Resolution, ...]:
    """Return what the planned grid would resolve under each law of `assume.law`; writes nothing."""
    frame = planned(study)
    bench = grid(frame, FitConfig().parameter_count)
    noise, config = noise_of(study, frame), design_config(study, bench)
    return tuple(resolve(bench, law, noise, config, progress) for law in laws(study, bench))


def check_reachable(knowledge: Information) -> None:
    """Raise ConfigError where no choice of cells can bracket three optima under any of the laws."""
    logs = np.log(knowledge.recurrences)
    within = (knowledge.optima > logs.min()) & (knowledge.optima < logs.max())
    if (within.sum(1) >= MIN_BUDGETS).any():
        return
    budgets, first = knowledge.budgets_flops, np.exp(np.clip(knowledge.optima[0], *np.log(REACH)))
    raise ConfigError(
        f"fewer than {MIN_BUDGETS} budgets have their optimum within µ = {np.exp(logs.min()):g} to "
        f"{np.exp(logs.max()):g}: at {number(budgets[0])} FLOPs the law has it at {first[0]:.3g}, at "
        f"{number(budgets[-1])} at {first[-1]:.3g}; choose from others with assume.budgets_flops=[...] or "
        "assume.recurrences=[...]"
    )


def write_design(
    results: Sequence[Resolution], folder: Path, name: str = "design", labels: Sequence[str] = ()
) -> Path:
    """Write NAME.json and the figure (PDF, PNG, CSV) into `folder`; return it."""
    from analysis.figures.design import design_figure
    from analysis.figures.style import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", plain.to_json(results) + "\n")
    save_figure(replace(design_figure(results, labels), name=name), folder)
    return folder


def planned(study: StudyConfig) -> pd.DataFrame:
    """Return the cells of the plan that would run; raises ConfigError unless they are of one group."""
    frame = plan(study)
    kept = frame[frame["verdict"] == "OK"]
    if kept.empty:
        raise ConfigError(f"no cell of sweep {study.sweep.name} would run: loopscale plan tells why")
    return one_group(kept)


def one_group(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs, renumbered; raises ConfigError unless they may share a law."""
    split = groups(runs)
    if len(split) > 1:
        labels = "; ".join(label for label, _ in split)
        raise ConfigError(f"a design is of one group of runs, here are {len(split)}: {labels}")
    return split[0][1].reset_index(drop=True)


def laws(study: StudyConfig, bench: Grid) -> list[Generator]:
    """Return the laws that `assume.law` names.

    Raises ConfigError for a name that is neither "paper", "paper_optima" nor a file.
    """
    assume, scale, found = study.assume, str(bench.runs["scale"].iloc[0]), []
    named = assume.law or "paper"
    for name in [named] if isinstance(named, str) else named:
        if name in ("paper", "paper_optima"):
            law = published(scale, bench.runs, assume.parameter_count)
        elif Path(name).is_file():
            law = fitted(Path(name), bench.runs, assume.parameter_count)
        else:
            raise ConfigError(
                f"assume.law={name}: choose paper, paper_optima, or a laws.json of loopscale fit"
            )
        law = replace(law, coupling=assume.coupling, loop_power=law.loop_power * assume.loop_power)
        found.append(at_published_optima(law, scale, bench.shape) if name == "paper_optima" else law)
    return found


def noise_of(study: StudyConfig, frame: pd.DataFrame) -> Noise:
    """Return the noise that `assume` states, the seeds' from replicates of a table where it names one."""
    assume, seeds = study.assume, study.assume.seed_nats
    if assume.noise_from is not None:
        scale = set(frame["scale"])
        runs = select(read_tables(Path(assume.noise_from))[0], study.sweep.max_epochs).runs
        floor = noise_floor(runs[runs["scale"].isin(scale)] if runs["scale"].isin(scale).any() else runs)
        if floor.sd_nats is None:
            raise ConfigError(f"assume.noise_from={assume.noise_from}: {floor.sentence()}")
        seeds = floor.sd_nats
    return Noise(
        seed_nats=seeds,
        trunk_nats=assume.trunk_nats,
        evaluation_nats=assume.evaluation_nats,
        tail=assume.tail,
    )


def allowance(study: StudyConfig, frame: pd.DataFrame, otherwise: float) -> float:
    """Return the allowance in FLOPs; hours, as in 300h, are turned into FLOPs at the plan's own price."""
    given = study.allowance
    if given is None:
        return otherwise
    if isinstance(given, str):
        hours, total = given.removesuffix("h"), float(frame["hours"].sum(min_count=1))
        if not given.endswith("h") or not hours.replace(".", "", 1).isdigit():
            raise ConfigError(f"allowance={given}: give FLOPs, as 5e20, or device-hours, as 300h")
        if np.isnan(total):
            raise ConfigError(
                f"allowance={given}: the plan has no price for hours; set cluster.device_peak_flops_per_s, "
                "or give FLOPs"
            )
        given = float(hours) * float(frame["nominal_flops"].sum()) / total
    return float(given)


def ladder(budgets: Array, beyond: float) -> list[float]:
    """Return budgets a factor of two apart from the least to `beyond` times the largest."""
    low, high = float(budgets.min()), beyond * float(budgets.max())
    return [low * 2.0**k for k in range(int(np.floor(np.log2(high / low) + 1e-9)) + 1)]


def design_config(study: StudyConfig, bench: Grid) -> DesignConfig:
    """Return the settings of the simulation."""
    assume = study.assume
    return build(
        DesignConfig,
        {
            "studies": assume.studies,
            "analysts": assume.analysts,
            "bootstrap": assume.bootstrap,
            "seed": assume.seed,
            "target_flops": assume.target_flops or 4 * float(bench.cells.budgets_flops.max()),
            "margin_nats": assume.margin_nats,
        },
        "assume.",
    )


def target_of(study: StudyConfig, config: DesignConfig) -> float | None:
    """Return the budget of the optimum to narrow, None for the exponent."""
    return config.target_flops if study.assume.quantity == "optimum" else None
