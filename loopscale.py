"""loopscale: scaling-law studies of looped language models, from the command line and from Python.

Every command is also a function of the same name here. `cfg` is a list of overrides, as on the command
line, or what `compose` made of them. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Comparison
    from analysis.parcae_compare import PublishedComparison
    from analysis.resolution import Resolution
    from harness.record import Evaluation
    from sweeps.analyse import AnyFit
    from sweeps.config import StatusConfig, StudyConfig
    from sweeps.suggest import Suggestion

Overrides = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: what `--help` says and the function that runs and prints it."""

    summary: str
    example: str
    settings: str  # file under conf/ whose keys it takes
    run: Callable[[list[str]], None]


def compose(cfg: Overrides | StudyConfig = ()) -> StudyConfig:
    """Return the study that overrides describe, e.g. compose(["sweep=demo", "seed=1"])."""
    from sweeps.compose import compose_study
    from sweeps.config import StudyConfig

    return cfg if isinstance(cfg, StudyConfig) else compose_study(cfg)


def data(cfg: Overrides | StudyConfig = ()) -> None:
    """Prepare the data sets that the configuration names; done once, cached by digest."""
    from sweeps.launch import prepare_data
    from sweeps.live import data_progress

    with data_progress() as progress:
        prepare_data(compose(cfg), progress)


def train(cfg: Overrides | StudyConfig = ()) -> dict[str, Any]:
    """Train one run in `<root>/single/<run_id>` (or resume it) and return its record."""
    from sweeps.single import train_one

    return train_one(compose(cfg))


def evaluate(cfg: Overrides) -> Evaluation:
    """Return the loss of a run or a checkpoint at every test-time depth; changes nothing."""
    settings = _settings("eval", cfg)
    from harness.evaluate import evaluate_folder

    return evaluate_folder(
        Path(settings.run or settings.checkpoint),
        Path(settings.cache),
        data=None if settings.data is None else Path(settings.data),
        blocks=settings.blocks,
        max_depth=settings.max_depth,
    )


def evaluate_tasks(cfg: Overrides) -> pd.DataFrame:
    """Score models on tasks=core, core_extended, symbolic or single ones; one row per task and depth.

    `attrs["notes"]` of the frame says what to know about them, absent tasks first of all.
    """
    from sweeps.evaluation import evaluate_models
    from sweeps.live import data_progress

    with data_progress() as progress:
        return evaluate_models(_settings("eval", cfg), progress)


def export(cfg: Overrides) -> Path:
    """Write a model as config.json, model.safetensors and tokenizer.json; return their folder."""
    settings = _settings("export", cfg)
    from harness.weights import export

    folder = Path(settings.folder)
    export(Path(settings.model), folder, cache=Path(settings.cache), published=settings.published)
    return folder


def generate(cfg: Overrides) -> str:
    """Continue a prompt with a run, an export or a published checkpoint; return the new text."""
    settings = _settings("generate", cfg)
    from harness.completion import complete
    from harness.weights import load_weights, tokenizer_file

    path = Path(settings.model)
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
    import sweeps.plan

    return sweeps.plan.plan(compose(cfg))


def design(cfg: Overrides | StudyConfig = ()) -> tuple[Resolution, ...]:
    """Return what the planned grid would resolve under each law assumed; writes nothing."""
    import sweeps.design

    return sweeps.design.design(compose(cfg))


def suggest(cfg: Overrides | StudyConfig = ()) -> Suggestion:
    """Return the runs (suggest=N) that narrow a collected sweep's interval most; writes nothing."""
    import sweeps.suggest

    return sweeps.suggest.suggest(compose(cfg))


def cancel(cfg: Overrides) -> list[str]:
    """Stop a launched sweep, or one run of it; launch continues it. Returns what was stopped."""
    import sweeps.change

    return sweeps.change.cancel(_settings("cancel", cfg))


def retry(cfg: Overrides) -> list[str]:
    """Open failed runs again and start them; returns their ids. Remarks are warnings."""
    import warnings

    import sweeps.change

    opened, notes = sweeps.change.retry(_settings("retry", cfg))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return opened


def launch(cfg: Overrides | StudyConfig = ()) -> pd.DataFrame:
    """Enter the sweep into its ledger, start what is missing and return its status at once.

    What the launch has to remark comes first in `attrs["notes"]`.
    """
    from sweeps.launch import launch
    from sweeps.status import status

    folder, notes = launch(compose(cfg))
    frame = status(folder)
    frame.attrs["notes"] = [*notes, *frame.attrs["notes"]]
    return frame


def status(cfg: Overrides) -> pd.DataFrame:
    """Return how a launched sweep stands, one row per run."""
    import sweeps.status

    return sweeps.status.status(_settings("status", cfg).folder)


def collect(cfg: Overrides) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write and return the runs table and the depth table of a sweep."""
    import sweeps.collect

    settings = _settings("collect", cfg)
    return sweeps.collect.collect(settings.folder, [Path(folder) for folder in settings.also])


def sync(cfg: Overrides) -> pd.DataFrame:
    """Make the wandb histories of a sweep from its metrics; offline unless mode=online."""
    import sweeps.sync
    from sweeps.live import data_progress

    with data_progress() as progress:
        return sweeps.sync.sync(_settings("sync", cfg), progress)


def fit(cfg: Overrides) -> AnyFit:
    """Fit the laws of a collected sweep (writes laws.json beside the tables) or of data=..., with intervals
    or refusals.
    """
    from sweeps.analyse import fit_sweep

    return fit_sweep(_settings("fit", cfg))


def compare(cfg: Overrides) -> Comparison | PublishedComparison:
    """Compare looped with fixed depth at equal FLOPs."""
    from sweeps.analyse import compare_data

    return compare_data(_settings("compare", cfg))


def report(cfg: Overrides) -> Path:
    """Write figures and one self-contained HTML page; returns its path."""
    from sweeps.analyse import report_sweep

    return report_sweep(_settings("report", cfg))[0]


def demo(cfg: Overrides = ()) -> Path:
    """Run a whole small study on this machine, from text to report; run again, it continues."""
    from sweeps.compose import listed
    from sweeps.demo import run_demo

    quick = any(text.lstrip("+").lower() == "quick=true" for text in cfg)
    return run_demo(compose([f"sweep={'demo_quick' if quick else 'demo'}", *listed(cfg, ("tasks",))]))


def _settings(command: str, cfg: Overrides) -> Any:
    """Return the checked settings of a command on finished runs, the dataclass of `sweeps.config.TABLES`."""
    from sweeps.compose import compose_table, listed
    from sweeps.config import TABLES

    if command == "eval":
        cfg = listed([text.removeprefix("eval.") for text in cfg], ("tasks", "depths", "seeds"))
    return compose_table(command, cfg, TABLES[command])


def _show_data(overrides: list[str]) -> None:
    from sweeps.launch import describe_data

    study = compose(overrides)
    data(study)
    print(describe_data(study))


def _show_train(overrides: list[str]) -> None:
    record = train(overrides)
    if int(os.environ.get("RANK", 0)) == 0:  # of the processes that torchrun starts, one answers
        print(json.dumps(record, indent=1))


def _show_eval(overrides: list[str]) -> None:
    settings = _settings("eval", overrides)
    if settings.tasks is not None:
        _show_tasks(overrides, settings.format)
        return
    result = evaluate(overrides)
    if settings.format == "json":
        print(json.dumps(vars(result), indent=1))
        return
    print(f"{'T':>3}  loss (nats)     ±  bits/byte")
    rows = zip(result.loss_nats, result.loss_se_nats, result.bits_per_byte, strict=True)
    for depth, row in enumerate(rows, start=1):
        print(f"{depth:>3}  {row[0]:11.4f}  {row[1]:.4f}  {row[2]:8.4f}")
    print(_saturating(result.loss_nats))


def _saturating(losses: list[float]) -> str:
    """Return the law of a depth curve in one line."""
    import numpy as np

    from analysis.saturating import fit_saturating

    law = fit_saturating(np.arange(1.0, len(losses) + 1), np.array(losses))
    if law.rate is None:
        return f"L(T) = L_inf + Z exp(-z T): {law.refusal}"
    low, high = (f"{end:.2f}" if end is not None else "" for end in (law.rate_low, law.rate_high))
    return (
        f"L(T) = L_inf + Z exp(-z T): L_inf = {law.floor_nats:.4f} nats, Z = {law.amplitude_nats:.4f}, "
        f"z = {law.rate:.2f} [{low}, {high}] per loop"
    )


def _show_tasks(overrides: list[str], form: str) -> None:
    from sweeps.evaluation import SCORE_COLUMNS
    from sweeps.show import as_json, as_text

    frame = evaluate_tasks(overrides)
    if int(os.environ.get("RANK", 0)) != 0:  # of the processes that torchrun starts, one answers
        return
    if form == "json":
        print(as_json(frame, notes=frame.attrs["notes"]))
    else:
        print("\n".join([as_text(frame, SCORE_COLUMNS), *frame.attrs["notes"]]))


def _show_export(overrides: list[str]) -> None:
    print(export(overrides))


def _show_generate(overrides: list[str]) -> None:
    print(generate(overrides))


def _show_plan(overrides: list[str]) -> None:
    import sweeps.plan
    from sweeps.show import PLAN_COLUMNS, as_json, as_text

    study = compose(overrides)
    if study.design or study.suggest:
        from sweeps.design_show import show

        print(show(study, overrides))
        return
    if study.calibrate:
        from sweeps.calibrate import calibrate

        calibrate(study)
    frame = plan(study)
    total = sweeps.plan.totals(frame)
    if study.format == "json":
        more = {name: frame.attrs[name] for name in ("notes", "price", "trunks")}
        print(as_json(frame, totals=total, **more))
    else:
        print(as_text(frame, PLAN_COLUMNS))
        print(sweeps.plan.summary(frame))


def _show_launch(overrides: list[str]) -> None:
    from sweeps.forecast import summary
    from sweeps.launch import confirm, dry_run

    study = compose(overrides)
    if study.dry_run:
        dry_run(study, print)
        return
    if study.confirm and not confirm(study):
        return
    frame = launch(study)
    sweep = frame.attrs["sweep"]  # a rehearsal has its own
    print(_status_json(frame) if study.format == "json" else summary(frame, sweep, worked_on=True))


def _show_status(overrides: list[str]) -> None:
    from sweeps.forecast import summary, with_trunks
    from sweeps.ledger import is_worked_on
    from sweeps.show import STATUS_COLUMNS, as_text

    settings = _settings("status", overrides)
    if settings.run is not None:
        print(_shown_run(settings))
        return
    if settings.watch:
        from sweeps.live import watch_until_idle

        watch_until_idle(settings.folder)
    frame = status(overrides)
    if settings.format == "json":
        print(_status_json(frame))
    else:
        print(as_text(with_trunks(frame), STATUS_COLUMNS))
        print(summary(frame, settings.sweep, worked_on=is_worked_on(settings.folder)))


def _status_json(frame: pd.DataFrame) -> str:
    from sweeps.forecast import counts
    from sweeps.show import as_json

    more = {name: frame.attrs[name] for name in ("notes", "forecast", "trunks")}
    return as_json(frame, counts=counts(frame), **more)


def _shown_run(settings: StatusConfig) -> str:
    from sweeps.change import find_run
    from sweeps.inspection import as_text, inspect_run
    from sweeps.ledger import read_ledger
    from sweeps.show import plain

    ledger = read_ledger(settings.folder)
    run = find_run(settings.folder, ledger, str(settings.run))
    found = inspect_run(settings.folder, ledger, run)
    return json.dumps(plain(found), indent=1) if settings.format == "json" else as_text(found)


def _show_cancel(overrides: list[str]) -> None:
    stopped = cancel(overrides)
    if _settings("cancel", overrides).format == "json":
        print(json.dumps({"cancelled": stopped}, indent=1))
        return
    print("\n".join(f"cancelled {what}" for what in stopped) or "nothing was queued or running")


def _show_retry(overrides: list[str]) -> None:
    from sweeps.change import retry

    settings = _settings("retry", overrides)
    opened, notes = retry(settings)
    if settings.format == "json":
        print(json.dumps({"started": opened, "notes": notes}, indent=1))
        return
    lines = [f"started again: {run}" for run in opened] or ["no run has failed"]
    print("\n".join([*lines, *notes]))


def _show_collect(overrides: list[str]) -> None:
    from sweeps.forecast import gaps
    from sweeps.show import as_json

    settings = _settings("collect", overrides)
    runs, depths = collect(overrides)
    if settings.format == "json":
        print(as_json(runs))
    else:
        print(f"{settings.folder}: runs.parquet ({len(runs)} rows), depths.parquet ({len(depths)} rows)")
        print(gaps(runs))


def _show_sync(overrides: list[str]) -> None:
    from sweeps.show import as_json

    settings = _settings("sync", overrides)
    frame = sync(overrides)
    if settings.format == "json":
        print(as_json(frame))
    else:
        counts = frame["wandb"].value_counts().items()
        print(f"{settings.folder}: " + ", ".join(f"{count} {told}" for told, count in counts))


def _show_fit(overrides: list[str]) -> None:
    result = fit(overrides)
    print(result.to_json() if _settings("fit", overrides).format == "json" else result.summary())


def _show_compare(overrides: list[str]) -> None:
    result = compare(overrides)
    print(result.to_json() if _settings("compare", overrides).format == "json" else result.summary())


def _show_report(overrides: list[str]) -> None:
    page = str(report(overrides))
    print(json.dumps({"path": page}, indent=1) if _settings("report", overrides).format == "json" else page)


def _show_demo(overrides: list[str]) -> None:
    demo(overrides)


COMMANDS = {
    "data": Command(
        summary="read text, train the tokenizer, write token shards",
        example="loopscale data data=text path=my_corpus/",
        settings="config",
        run=_show_data,
    ),
    "train": Command(
        summary="train one run, or resume it",
        example="loopscale train model=looped_90k model.mean_recurrence=4 budget_flops=1e11",
        settings="config",
        run=_show_train,
    ),
    "eval": Command(
        summary="validation loss, test-time depth curve, Core and other tasks of a run or checkpoint",
        example="loopscale eval run=runs/demo/RUN_ID tasks=core depths=1,2,4,8",
        settings="table/eval",
        run=_show_eval,
    ),
    "export": Command(
        summary="a model's config, weights and tokenizer as a folder that stands alone",
        example="loopscale export model=runs/demo/RUN_ID folder=my_model",
        settings="table/export",
        run=_show_export,
    ),
    "generate": Command(
        summary="continue a prompt at a chosen test-time depth",
        example="loopscale generate model=runs/demo/RUN_ID prompt='def main(' depth=8",
        settings="table/generate",
        run=_show_generate,
    ),
    "plan": Command(
        summary="solve a grid and price it; writes only for design=, suggest= and calibrate=",
        example="loopscale plan sweep=isoflop_140m accounting=released",
        settings="config",
        run=_show_plan,
    ),
    "launch": Command(
        summary="plan, confirm, start what is missing, return at once",
        example="loopscale launch sweep=demo confirm=false",
        settings="config",
        run=_show_launch,
    ),
    "status": Command(
        summary="how a launched sweep stands",
        example="loopscale status sweep=demo watch=true",
        settings="table/status",
        run=_show_status,
    ),
    "cancel": Command(
        summary="stop a launched sweep, or one run; launch continues it",
        example="loopscale cancel sweep=demo",
        settings="table/cancel",
        run=_show_cancel,
    ),
    "retry": Command(
        summary="start failed runs again",
        example="loopscale retry sweep=demo failed=true",
        settings="table/retry",
        run=_show_retry,
    ),
    "collect": Command(
        summary="one table of runs and one of (run, depth), Parquet and CSV",
        example="loopscale collect sweep=demo",
        settings="table/collect",
        run=_show_collect,
    ),
    "sync": Command(
        summary="rebuild the wandb runs of a sweep from its metrics",
        example="loopscale sync sweep=demo mode=online",
        settings="table/sync",
        run=_show_sync,
    ),
    "fit": Command(
        summary="scaling laws with confidence intervals, or the reasons for none",
        example="loopscale fit data=points.csv columns.compute=flops columns.x=params columns.loss=loss",
        settings="table/fit",
        run=_show_fit,
    ),
    "report": Command(
        summary="figures (PDF, PNG, CSV) and one self-contained HTML page",
        example="loopscale report data=parcae_published",
        settings="table/report",
        run=_show_report,
    ),
    "compare": Command(
        summary="looped against fixed depth at equal FLOPs",
        example="loopscale compare sweep=demo",
        settings="table/compare",
        run=_show_compare,
    ),
    "demo": Command(
        summary="everything above in one go on this machine's CPU",
        example="loopscale demo quick=true",
        settings="config",
        run=_show_demo,
    ),
}


def usage() -> str:
    """Return the text of `loopscale --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: loopscale COMMAND [key=value | group=name | +key=value ...]",
            "",
            "Scaling-law studies of looped language models.",
            "",
            *lines,
            "",
            "loopscale COMMAND --help shows the command's settings and an example.",
        ]
    )


def command_help(name: str) -> str:
    """Return the text of `loopscale COMMAND --help`: example, groups with their choices, settings."""
    command = COMMANDS[name]
    conf = Path(__file__).resolve().parent / "conf"
    lines = [f"loopscale {name}: {command.summary}", "", f"example: {command.example}", ""]
    if command.settings == "config":
        groups = sorted(path for path in conf.iterdir() if path.is_dir() and path.name != "table")
        lines.append("groups (group=name):")
        for group in groups:
            choices = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
            lines.append(f"  {group.name:<10} {choices}")
        lines.append("")
    text = (conf / f"{command.settings}.yaml").read_text()
    body = text[text.index("\nroot:") :] if command.settings == "config" else text
    return "\n".join([*lines, f"settings (key=value), from conf/{command.settings}.yaml:", body.strip()])


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
            from model.checked import ConfigError, closest

            raise ConfigError(f"unknown command {name}{closest(name, COMMANDS)}")
        if "--help" in overrides or "-h" in overrides:
            print(command_help(name))
            return
        COMMANDS[name].run(overrides)
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
    except (ValueError, OSError) as error:
        if os.environ.get("LOOPSCALE_TRACEBACK"):
            raise
        print(f"loopscale: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
