"""loopscale: scaling-law studies of looped language models, from the command line and from Python.

Every command is also a function of the same name here. `cfg` is a list of overrides, as on the command
line, or what `compose` made of them. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config_validation import ConfigError, closest
from sweeps.cli import answers
from sweeps.cli.help import COMMANDS, command_help, usage

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Comparison
    from analysis.design.power import Resolution
    from analysis.published.comparison import PublishedComparison
    from harness.run.record import Evaluation
    from sweeps.cli.analyse import AnyFit
    from sweeps.cli.evaluate import TaskScores
    from sweeps.config.study import StudyConfig
    from sweeps.planning.suggest import Suggestion

Overrides = Sequence[str]
MULTIRUN = ("-m", "--multirun")


def compose(cfg: Overrides | StudyConfig = ()) -> StudyConfig:
    """Return the study that overrides describe, e.g. compose(["sweep=demo", "seed=1"])."""
    from sweeps.config.compose import compose_study
    from sweeps.config.study import StudyConfig

    return cfg if isinstance(cfg, StudyConfig) else compose_study(cfg)


def data(cfg: Overrides | StudyConfig = ()) -> None:
    """Prepare the data sets that the configuration names; done once, cached by digest."""
    from sweeps.cli.progress import stage_progress
    from sweeps.launch.launch import prepare_data

    with stage_progress() as progress:
        prepare_data(compose(cfg), progress)


def train(cfg: Overrides | StudyConfig = ()) -> dict[str, Any]:
    """Train one run in `<root>/single/<run_id>` (or resume it) and return its record."""
    from sweeps.cli.train import train_one

    return train_one(compose(cfg))


def evaluate(cfg: Overrides) -> Evaluation:
    """Return the loss of a run or a checkpoint at every test-time depth; changes nothing."""
    settings = _settings("eval", cfg)
    from harness.evaluation.depth_curve import evaluate_folder
    from sweeps.cli.evaluate import models_of

    return evaluate_folder(
        models_of(settings)[0],
        Path(settings.cache),
        data=None if settings.data is None else Path(settings.data),
        blocks=settings.blocks,
        max_depth=settings.max_depth,
    )


def evaluate_tasks(cfg: Overrides) -> TaskScores:
    """Score models on tasks=core, core_extended, symbolic or single tasks.

    Returns
    -------
    `frame` with one row per model, task and depth, and `notes` such as the tasks whose data is absent.
    """
    from sweeps.cli.evaluate import evaluate_models
    from sweeps.cli.progress import stage_progress

    with stage_progress() as progress:
        return evaluate_models(_settings("eval", cfg), progress)


def export(cfg: Overrides) -> Path:
    """Write a model as config.json, model.safetensors and tokenizer.json; return their folder."""
    settings = _settings("export", cfg)
    from harness.evaluation.weights import export

    folder = Path(settings.folder)
    export(Path(settings.checkpoint), folder, cache=Path(settings.cache), published=settings.published)
    return folder


def generate(cfg: Overrides) -> str:
    """Continue a prompt with a run, an export or a published checkpoint; return the new text."""
    settings = _settings("generate", cfg)
    from harness.evaluation.completion import complete
    from harness.evaluation.weights import load_weights, tokenizer_file

    path = Path(settings.checkpoint)
    return complete(
        load_weights(path),
        tokenizer_file(path, Path(settings.cache)),
        [settings.prompt],
        new_tokens=settings.tokens,
        depth=settings.depth,
        temperature=settings.temperature,
        seed=settings.seed,
    )[0]


def plan(cfg: Overrides | StudyConfig = ()) -> pd.DataFrame:
    """Return the plan of a sweep, one row per cell; writes nothing.

    On the command line, `design` and `suggest` write the figures and sweeps that conf/config.yaml names
    beside them, and `calibrate=true` trains each shape for seconds, on SLURM in a job, and keeps its speed.
    """
    import sweeps.planning.plan

    return sweeps.planning.plan.plan(compose(cfg))


def design(cfg: Overrides | StudyConfig = ()) -> tuple[Resolution, ...]:
    """Return what the planned grid would resolve under each law assumed; writes nothing."""
    import sweeps.planning.design

    return sweeps.planning.design.design(compose(cfg))


def suggest(cfg: Overrides | StudyConfig = ()) -> Suggestion:
    """Return the runs (suggest=N) that narrow a collected sweep's interval most; writes nothing."""
    import sweeps.planning.suggest

    return sweeps.planning.suggest.suggest(compose(cfg))


def cancel(cfg: Overrides) -> list[str]:
    """Stop a launched sweep, or one run of it; launch continues it. Returns what was stopped."""
    import sweeps.launch.control

    return sweeps.launch.control.cancel(_settings("cancel", cfg))


def retry(cfg: Overrides) -> list[str]:
    """Open failed runs again and start them; returns their ids. Remarks are warnings."""
    import warnings

    import sweeps.launch.control

    opened, notes = sweeps.launch.control.retry(_settings("retry", cfg))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return opened


def launch(cfg: Overrides | StudyConfig = ()) -> pd.DataFrame:
    """Enter the sweep into its ledger, start what is missing and return its status at once.

    What the launch has to remark comes first in `attrs["notes"]`.
    """
    from sweeps.launch.launch import launch
    from sweeps.state.status import status

    folder, notes = launch(compose(cfg))
    frame = status(folder)
    frame.attrs["notes"] = [*notes, *frame.attrs["notes"]]
    return frame


def status(cfg: Overrides) -> pd.DataFrame:
    """Return how a launched sweep stands, one row per run."""
    import sweeps.state.status

    return sweeps.state.status.status(_settings("status", cfg).folder)


def collect(cfg: Overrides) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write and return the runs table and the depth table of a sweep."""
    import sweeps.state.collect

    settings = _settings("collect", cfg)
    return sweeps.state.collect.collect(settings.folder, [Path(folder) for folder in settings.also])


def sync(cfg: Overrides) -> pd.DataFrame:
    """Make the wandb histories of a sweep from its metrics; offline unless mode=online."""
    import sweeps.cli.sync
    from sweeps.cli.progress import stage_progress

    with stage_progress() as progress:
        return sweeps.cli.sync.sync(_settings("sync", cfg), progress)


def fit(cfg: Overrides) -> AnyFit:
    """Fit the laws of a collected sweep (writes laws.json beside the tables) or of data=..., with intervals
    or refusals.
    """
    from sweeps.cli.analyse import fit_sweep

    return fit_sweep(_settings("fit", cfg))


def compare(cfg: Overrides) -> Comparison | PublishedComparison:
    """Compare looped with fixed depth at equal FLOPs."""
    from sweeps.cli.analyse import compare_data

    return compare_data(_settings("compare", cfg))


def report(cfg: Overrides) -> Path:
    """Write figures and one self-contained HTML page; returns its path."""
    from sweeps.cli.analyse import report_sweep

    return report_sweep(_settings("report", cfg))[0]


def demo(cfg: Overrides = ()) -> Path:
    """Run a whole small study on this machine, from text to report; run again, it continues."""
    from sweeps.cli.demo import run_demo
    from sweeps.config.compose import listed

    quick = any(text.lstrip("+").lower() == "quick=true" for text in cfg)
    return run_demo(compose([f"sweep={'demo_quick' if quick else 'demo'}", *listed(cfg, ("tasks",))]))


def _settings(command: str, cfg: Any) -> Any:
    """Return the checked settings of a command on finished runs (`sweeps.config.study.TABLES`)."""
    from sweeps.config.compose import compose_table, listed
    from sweeps.config.study import TABLES

    if isinstance(cfg, TABLES[command]):
        return cfg
    if command == "eval":
        cfg = listed([text.removeprefix("eval.") for text in cfg], ("tasks", "depths", "seeds"))
    return compose_table(command, cfg, TABLES[command])


def _first() -> bool:
    """Tell whether this process answers: of those that torchrun starts, one does."""
    return int(os.environ.get("RANK", 0)) == 0


def _data(overrides: list[str]) -> str:
    from sweeps.launch.launch import describe_data

    study = compose(overrides)
    data(study)
    return describe_data(study)


def _train(overrides: list[str]) -> str | None:
    from sweeps.config.compose import each

    asked = [text for text in overrides if text not in MULTIRUN]
    records = [train(one) for one in each(asked)] if asked != overrides else train(overrides)
    return json.dumps(records, indent=1) if _first() else None


def _eval(overrides: list[str]) -> str | None:
    settings = _settings("eval", overrides)
    if settings.tasks is None:
        return answers.curve(evaluate(settings), settings.format)
    result = evaluate_tasks(settings)
    return answers.scores(result, settings.format) if _first() else None


def _plan(overrides: list[str]) -> str:
    study = compose(overrides)
    if study.allowance is not None and study.design != "search" and not study.suggest:
        raise ConfigError("allowance is for design=search and suggest=N: add one of them or leave it out")
    if study.design or study.suggest:
        from sweeps.cli.design import show

        return show(study, overrides)
    if study.calibrate:
        from sweeps.launch.calibrate import calibrate

        calibrate(study)
    return answers.planned(plan(study), study.format)


def _launch(overrides: list[str]) -> str | None:
    from sweeps.launch.launch import confirm, dry_run
    from sweeps.launch.launch import launch as start

    study = compose(overrides)
    if study.dry_run:
        dry_run(study, print)
        return None
    if study.confirm and not confirm(study):
        return None
    if study.format == "json":
        return answers.status_json(launch(study))
    return answers.launched(*start(study), study.root)


def _status(overrides: list[str]) -> str:
    settings = _settings("status", overrides)
    if settings.run is not None:
        return answers.one_run(settings)
    if settings.watch:
        from sweeps.cli.progress import watch_until_idle

        watch_until_idle(settings.folder)
    return answers.status(status(settings), settings)


def _cancel(overrides: list[str]) -> str:
    settings = _settings("cancel", overrides)
    return answers.stopped(cancel(settings), settings.format)


def _retry(overrides: list[str]) -> str:
    from sweeps.launch.control import retry

    settings = _settings("retry", overrides)
    return answers.opened(*retry(settings), settings.format)


def _collect(overrides: list[str]) -> str:
    settings = _settings("collect", overrides)
    return answers.collected(*collect(settings), settings)


def _sync(overrides: list[str]) -> str:
    settings = _settings("sync", overrides)
    return answers.synced(sync(settings), settings)


def _fit(overrides: list[str]) -> str:
    settings = _settings("fit", overrides)
    return answers.fitted(fit(settings), settings.format)


def _compare(overrides: list[str]) -> str:
    from sweeps.cli.analyse import comparison_figures

    settings = _settings("compare", overrides)
    found = compare(settings)
    return answers.compared(found, comparison_figures(settings, found), settings.format)


def _report(overrides: list[str]) -> str:
    settings = _settings("report", overrides)
    return answers.reported(report(settings), settings.format)


def _demo(overrides: list[str]) -> None:
    demo(overrides)


_RUN: dict[str, Callable[[list[str]], str | None]] = {
    "data": _data,
    "train": _train,
    "eval": _eval,
    "export": lambda overrides: str(export(overrides)),
    "generate": generate,
    "plan": _plan,
    "launch": _launch,
    "status": _status,
    "cancel": _cancel,
    "retry": _retry,
    "collect": _collect,
    "sync": _sync,
    "fit": _fit,
    "report": _report,
    "compare": _compare,
    "demo": _demo,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on stderr and exit code 2.

    LOOPSCALE_TRACEBACK=1 shows the traceback behind that line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return
    name, *overrides = arguments
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name}{closest(name, COMMANDS)}")
        if "--help" in overrides or "-h" in overrides:
            print(command_help(name))
            return
        if (answer := _RUN[name](overrides)) is not None:
            print(answer, flush=True)
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
    except BrokenPipeError:  # the reader, as head does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        if os.environ.get("LOOPSCALE_TRACEBACK"):
            raise
        print(f"loopscale: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
