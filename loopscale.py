"""loopscale: scaling-law studies of looped language models, from the command line and from Python.

Every command is also a function of the same name here. `cfg` is a list of overrides, as on the command
line, or the configuration that `compose` made of them. Heavy modules are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.huggingface.registration import register_with_transformers
from sweeps.cli.main import main

if TYPE_CHECKING:
    import pandas as pd

    from analysis.design.power import PowerAnalysis
    from harness.evaluation.decoded_losses import DecodedLoss
    from harness.run.record import Evaluation
    from sweeps.cli.comparing import AnyComparison
    from sweeps.cli.evaluate import TaskScores
    from sweeps.cli.fitting import AnyFit
    from sweeps.cli.serving import ServeCost
    from sweeps.config.study import StudyConfig
    from sweeps.planning.suggest import Suggestion

Overrides = Sequence[str]

register_with_transformers()  # which imports nothing unless transformers is imported


def compose(cfg: Overrides | StudyConfig = ()) -> StudyConfig:
    """Return the study that overrides describe, e.g. compose(["sweep=demo", "seed=1"])."""
    from sweeps.config.compose import compose_study

    return compose_study(cfg)


def data(cfg: Overrides | StudyConfig = ()) -> None:
    """Prepare the data sets that the configuration names; each is prepared once and cached by digest."""
    from sweeps.cli.training import prepare_data

    prepare_data(compose(cfg))


def train(cfg: Overrides | StudyConfig = ()) -> dict[str, Any]:
    """Train one run in `<root>/single/<run_id>` (or resume it) and return its record."""
    from sweeps.cli.training import train_one

    return train_one(compose(cfg))


def evaluate(cfg: Overrides) -> Evaluation:
    """Return the validation loss of a run or a checkpoint at every test-time depth; writes nothing."""
    from sweeps.cli.models import evaluate_losses

    return evaluate_losses(_settings("eval", cfg))


def evaluate_decodings(cfg: Overrides) -> list[DecodedLoss]:
    """Return the validation loss under kv_budget=1,2,4 or exit=RULE thresholds=...; writes nothing.

    With an exit rule, the fixed depths 1..T follow.
    """
    from sweeps.cli.models import evaluate_decodings

    return evaluate_decodings(_settings("eval", cfg))


def evaluate_tasks(cfg: Overrides) -> TaskScores:
    """Score models on tasks=core, core_extended, symbolic or single tasks.

    Returns
    -------
    `frame` with one row per model, task and depth, and `notes` such as the tasks whose data is absent.
    """
    from sweeps.cli.models import evaluate_tasks

    return evaluate_tasks(_settings("eval", cfg))


def export(cfg: Overrides) -> Path:
    """Write a model as config.json, model.safetensors and tokenizer.json; return their folder."""
    from sweeps.cli.models import export_model

    return export_model(_settings("export", cfg))


def generate(cfg: Overrides) -> str:
    """Continue a prompt with a run, an export or a published checkpoint; return the new text."""
    from sweeps.cli.models import generate_text

    return generate_text(_settings("generate", cfg))


def new(cfg: Overrides) -> Path:
    """Write a commented sweep file, ./conf/sweep/NAME.yaml, for a scale and budgets; return it."""
    from sweeps.cli.new import new_sweep

    return new_sweep(_settings("new", cfg))[0]


def plan(cfg: Overrides | StudyConfig = ()) -> pd.DataFrame:
    """Return the plan of a sweep, one row per cell; writes nothing.

    `sweeps.planning.plan.plan` has the columns, and returns the totals and notes of the grid as well.
    """
    from sweeps.planning.plan import plan

    return plan(_study(cfg)).frame


def design(cfg: Overrides | StudyConfig = ()) -> tuple[PowerAnalysis, ...]:
    """Return what the planned grid would resolve under each assumed law; writes nothing."""
    from sweeps.planning.design import design

    return design(_study(cfg))


def suggest(cfg: Overrides | StudyConfig = ()) -> Suggestion:
    """Return the runs (suggest=N) that narrow a collected sweep's interval most; writes nothing."""
    from sweeps.planning.suggest import suggest

    return suggest(_study(cfg))


def launch(cfg: Overrides | StudyConfig = ()) -> pd.DataFrame:
    """Register the runs of a sweep, start what is missing and return its status at once.

    Remarks are issued as warnings.
    """
    import warnings

    from sweeps.cli.launching import launch_sweep
    from sweeps.state.status import status

    folder, submission = launch_sweep(_study(cfg))
    for note in submission.notes:
        warnings.warn(note, stacklevel=2)
    return status(folder).frame


def status(cfg: Overrides) -> pd.DataFrame:
    """Return the state of a launched sweep, one row per run.

    `sweeps.state.status.status` returns the trunks, the forecast and remarks as well.
    """
    from sweeps.state.status import status

    return status(_settings("status", cfg).folder).frame


def cancel(cfg: Overrides) -> list[str]:
    """Stop a launched sweep, or one run of it; launch continues it. Return the jobs that were stopped."""
    from sweeps.launch.control import cancel

    return cancel(_settings("cancel", cfg))


def retry(cfg: Overrides) -> list[str]:
    """Start failed runs again and return their ids; remarks are issued as warnings."""
    import warnings

    from sweeps.launch.control import retry

    started, notes = retry(_settings("retry", cfg))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return started


def collect(cfg: Overrides) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write and return the runs table and the depth table of a sweep."""
    from sweeps.state.collect import collect

    settings = _settings("collect", cfg)
    collected = collect(settings.folder, [Path(folder) for folder in settings.also])
    return collected.runs, collected.depths


def sync(cfg: Overrides) -> pd.DataFrame:
    """Make the wandb histories of a sweep from its metrics; offline unless mode=online."""
    from sweeps.cli.syncing import sync_sweep

    return sync_sweep(_settings("sync", cfg))


def fit(cfg: Overrides) -> AnyFit:
    """Return the laws of a collected sweep (and write laws.json beside its tables) or of the table `data`."""
    from sweeps.cli.fitting import fit_sweep

    return fit_sweep(_settings("fit", cfg))


def compare(cfg: Overrides) -> AnyComparison:
    """Compare looped with fixed depth, arms (arms=injection) or plain transformers (against=transformer)."""
    from sweeps.cli.comparing import compare_data

    return compare_data(_settings("compare", cfg))


def report(cfg: Overrides) -> Path:
    """Write figures and one self-contained HTML page; return its path."""
    from sweeps.cli.fitting import report_sweep

    return report_sweep(_settings("report", cfg))[0]


def serve_cost(cfg: Overrides) -> ServeCost:
    """Return bytes and speed of serving models at each depth, beside their loss (`.frame`, `.notes`)."""
    from sweeps.cli.serving import measure_serve_cost

    return measure_serve_cost(_settings("serve_cost", cfg))


def demo(cfg: Overrides = ()) -> Path:
    """Run a whole small study on this machine, from text to report; run again, it continues."""
    from sweeps.cli.demo import run_demo

    return run_demo(cfg)


def _study(cfg: Overrides | StudyConfig) -> StudyConfig:
    from sweeps.state.profile import study_of

    return study_of(cfg)


def _settings(command: str, cfg: Overrides) -> Any:
    from sweeps.config.compose import compose_table

    return compose_table(command, cfg)


if __name__ == "__main__":
    main()
