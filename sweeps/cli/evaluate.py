"""The scores of runs, exports and published checkpoints on suites of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.serialize import Printed
from harness.distributed.process_group import Ranks, connected
from harness.evaluation.bundle import Suite, read_suite
from harness.evaluation.download import public_bundle
from harness.evaluation.scores import FOLDER, resample_suite, save_items, save_scores
from harness.evaluation.suite import Protocol, SuiteResult, evaluate_suite
from harness.evaluation.symbolic import symbolic_bundle
from harness.evaluation.weights import TokenizedModel, check_model, is_run, load_tokenized
from harness.run.folder import RunFolder
from model.config_validation import ConfigError
from sweeps.cli.tables import as_json, as_text
from sweeps.config.model_commands import EvalConfig

if TYPE_CHECKING:
    import pandas as pd

    from analysis.config import Progress

RESAMPLES = 400  # of the items, for the interval of a gain over depth
SCORE_COLUMNS = {
    "run_id": "run",
    "task": "",
    "tasks": "",
    "depth": "T",
    "items": "",
    "accuracy": "",
    "se": "±",
    "seeds_se": "± seeds",
    "chance": "",
    "centred": "",
    "chance_corrected": "over chance",
    "log_prob_per_byte": "nats/byte",
    "log_prob_se": "± ",
    "margin_per_byte": "margin",
    "margin_se": "±  ",
    "cropped": "",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class TaskScores(Printed):
    """Scores of models on tasks, with the remarks that belong to them."""

    frame: pd.DataFrame  # one row per model, task and depth; the fields of harness.evaluation.scores.Score
    notes: tuple[str, ...]  # absent tasks, gain from depth, limits and cropped prompts

    def summary(self) -> str:
        """Return the table and the remarks as text."""
        return "\n".join([as_text(self.frame, SCORE_COLUMNS), *self.notes])

    def to_json(self) -> str:
        """Return the rows and the remarks as JSON."""
        return as_json(self.frame, notes=self.notes)


def evaluate_models(settings: EvalConfig, progress: Progress = lambda stage, fraction: None) -> TaskScores:
    """Score every model that `settings` names on its tasks.

    Raises
    ------
    ConfigError : a model, suite, bundle or depth does not exist.

    Notes
    -----
    Results are stored item by item beside each model and reused. Scores on all items of a finished run also
    go to its scores.json and record. Under torchrun the processes share the items of each task.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    paths = models_of(settings)
    for path in paths:
        check_model(path)
    with connected() as ranks:
        bundle = {name: ranks.once(partial(_bundle, settings, name, progress)) for name in _names(settings)}
        suites = {name: _suite(folder, name) for name, folder in bundle.items()}
        for path in paths:
            subject = load_tokenized(path, Path(settings.cache), device=settings.device, ranks=ranks)
            results = [
                _evaluate(path, subject, bundle[name], suite, settings, ranks, progress)
                for name, suite in suites.items()
            ]
            # Suites share tasks; each task gets one row.
            scores = {(score.task, score.depth): score for result in results for score in result.scores()}
            if ranks.first and is_run(path) and settings.limit is None:
                run = RunFolder(path)
                save_scores(run, scores.values())
                for result in results:
                    save_items(run, result.suite.name, result.results, bundle[result.suite.name])
            rows += [{"run_id": path.name} | score.row() for score in scores.values()]
            notes += [f"{path.name}: {note}" for result in results for note in _notes(result, settings)]
            ranks.barrier()
    return TaskScores(frame=pd.DataFrame(rows), notes=tuple(dict.fromkeys(notes)))


def _evaluate(
    path: Path,
    subject: TokenizedModel,
    bundle: Path,
    suite: Suite,
    settings: EvalConfig,
    ranks: Ranks,
    progress: Progress,
) -> SuiteResult:
    protocol = Protocol(
        depths=tuple(sorted(set(settings.depths or [subject.own_depth]))),
        seeds=tuple(settings.seeds),
        limit=settings.limit,
        bfloat16=settings.precision == "bfloat16",
        token_budget=settings.token_budget,
    )
    folder = Path(settings.folder) if settings.folder else path / FOLDER

    def shown(stage: str, fraction: float) -> None:
        progress(f"{path.name}: {stage}", fraction)

    return evaluate_suite(
        subject, bundle, suite, protocol, folder, ranks=ranks, progress=shown if ranks.first else _unseen
    )


def _unseen(stage: str, fraction: float) -> None:
    """Ignore progress: only the first process shows it."""


def _names(settings: EvalConfig) -> list[str]:
    return list(dict.fromkeys(settings.tasks or []))


def _suite(bundle: Path, name: str) -> Suite:
    suite = read_suite(bundle, name)
    if not suite.tasks:
        raise ConfigError(f"{bundle} has the data of no task of {name}")
    return suite


def _bundle(settings: EvalConfig, name: str, progress: Progress) -> Path:
    cache = Path(settings.cache)
    if name == "symbolic":
        cache.mkdir(parents=True, exist_ok=True)
        return symbolic_bundle(cache)
    if settings.bundle is not None:
        return Path(settings.bundle).expanduser()
    return public_bundle(cache, progress=progress)


def models_of(settings: EvalConfig) -> list[Path]:
    """Return the folders of the models.

    Raises
    ------
    ConfigError : no model is named, or one is named in two ways.
    """
    named = {"run": settings.run, "checkpoint": settings.checkpoint, "sweep": settings.sweep}
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1 and given != ["run", "sweep"]:
        problem = f"{' and '.join(given)} are set together" if given else "no model is named"
        raise ConfigError(
            f"{problem}: set run=FOLDER, sweep=NAME, sweep=NAME with run=ID, or checkpoint=FOLDER"
        )
    if settings.sweep is None:
        return [Path(settings.run or settings.checkpoint or "")]
    from sweeps.launch.control import find_run
    from sweeps.state.ledger import read_ledger

    folder = Path(settings.root) / settings.sweep
    if settings.run is not None:
        return [find_run(folder, read_ledger(folder), settings.run).path]
    return finished_runs(folder)


def finished_runs(folder: Path) -> list[Path]:
    """Return the folders of a sweep's finished runs.

    Raises
    ------
    ConfigError : there is none.
    """
    from sweeps.state.ledger import read_ledger

    done = [run.path for run in read_ledger(folder).runs(folder) if run.status().state == "done"]
    if not done:
        raise ConfigError(f"no run of {folder} is done: loopscale status sweep={folder.name}")
    return done


def _gain(result: SuiteResult) -> str | None:
    """Return a line on how the score gains from depth; None at a single depth."""
    from analysis.laws.score_curve import fit_gain

    depths = result.results[0][0].depths
    if len(depths) == 1:
        return None
    curve = [score.centred for score in result.scores() if score.task == result.suite.name]
    fit = fit_gain(np.array(depths), np.array(curve), resample_suite(result.results, RESAMPLES))
    return f"{result.suite.name} over depth: {fit.summary()}"


def _notes(result: SuiteResult, settings: EvalConfig) -> list[str]:
    suite, notes = result.suite, []
    if (gain := _gain(result)) is not None:
        notes.append(gain)
    if suite.absent:
        notes.append(
            f"{suite.name} covers {len(suite.tasks)} of {suite.size} tasks; absent: {', '.join(suite.absent)}"
        )
    if settings.limit is not None:
        notes.append(
            f"{suite.name}: only the first {settings.limit} items of each task; not entered into any record"
        )
    if suite.name == "symbolic":
        notes.append("symbolic is a generated suite, not Core")
    cropped = [task for task in result.results if any(one.cropped for one in task)]
    if cropped:
        notes.append(
            f"{suite.name}: in {len(cropped)} tasks, prompts longer than the context lost their first tokens"
        )
    return notes
