"""`loopscale fit` and `report`: laws and figures of a collected sweep or of the table `data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from analysis.result_files import write_result
from model.config_validation import ConfigError
from sweeps.cli.after_report import after_report, without_law
from sweeps.cli.comparing import compare_arms_of, compare_runs
from sweeps.cli.help import Command
from sweeps.cli.sources import PUBLISHED, fit_config, names_source, report_folder, results_folder, source_of
from sweeps.cli.tables import to_json
from sweeps.config.commands import LAWS, TRANSFORMER, CompareConfig, FitTableConfig
from sweeps.config.compose import compose_table
from sweeps.config.next_command import next_command

if TYPE_CHECKING:
    from analysis import IsoflopFit, LawFit, StudyFit
    from analysis.laws.curve_laws import CurveLaws
    from analysis.laws.task_score import TaskLaw
    from analysis.study.device_hours import DeviceHoursFit

    AnyFit: TypeAlias = StudyFit | IsoflopFit | LawFit | CurveLaws | TaskLaw | DeviceHoursFit


@names_source
def fit_sweep(settings: FitTableConfig) -> AnyFit:
    """Fit the sweep's tables and write laws.json beside them; with `data`, fit that and write to `out` alone.

    Points without runs give isoFLOP laws, or the one law that `law` names.
    """
    from analysis import fit, isoflop
    from analysis.study.cross_run_laws import fit_law_to_runs
    from analysis.study.points_laws import fit_law_to_points
    from analysis.tables.points import PointsTable
    from sweeps.cli.progress import stage_progress

    source, config = source_of(settings), fit_config(settings)
    if settings.envelope and not (isinstance(source, PointsTable) and settings.law == "isoflop"):
        raise ConfigError(
            f"envelope={','.join(settings.envelope)}: it is of isoFLOP points alone; a runs table shows "
            "that of every axis"
        )
    if settings.cost == "device_hours":
        from analysis.study.device_hours import fit_device_hours

        if isinstance(source, PointsTable):
            raise ConfigError(f"cost=device_hours: data={settings.data} has no recorded seconds of runs")
        return fit_device_hours(source[0], config)
    if isinstance(source, PointsTable):
        if settings.law == "isoflop":
            tolerance, envelope = settings.budget_tolerance, settings.envelope
            return isoflop(source, budget_tolerance=tolerance, envelope=envelope, config=config)
        return fit_law_to_points(settings.law, source, config=config)
    if settings.law != "isoflop":
        return fit_law_to_runs(settings.law, *source, config)
    with stage_progress() as progress:
        study = fit(*source, config, progress)
    if settings.keeps_results:
        write_result(results_folder(settings) / LAWS, study.to_json() + "\n")
    return study


@names_source
def report_sweep(settings: CompareConfig) -> tuple[Path, list[str]]:
    """Write the report with its figures; return the path of its page and one line per law.

    A sweep's goes to `<sweep>/report/`, that of other data to `<root>/reports/NAME/`, with `out` both to
    `<out>/report/`. It compares the arms of every axis, or of those that the settings name.
    """
    if settings.law != "isoflop":
        raise ConfigError(f"law={settings.law}: a report shows the isoFLOP laws; use loopscale fit")
    if settings.data == PUBLISHED:
        from analysis.report.report import parcae_report

        return parcae_report(report_folder(settings))
    from analysis import StudyFit, report
    from analysis.report.report import device_hours_report, points_report
    from analysis.study.device_hours import DeviceHoursFit
    from analysis.study.points import IsoflopFit
    from sweeps.cli.progress import stage_progress

    named = settings.arms or settings.against not in (None, TRANSFORMER)
    arms = (compare_arms_of(settings),) if named else None
    source, fitted = source_of(settings), fit_sweep(settings)
    folder, title = report_folder(settings), settings.data or settings.sweep
    if isinstance(fitted, IsoflopFit):
        return points_report(fitted, folder, title=title), fitted.headlines()
    if isinstance(fitted, DeviceHoursFit):
        return device_hours_report(fitted, folder, title=title), fitted.headlines()
    assert isinstance(source, tuple) and isinstance(fitted, StudyFit)
    with stage_progress() as progress:
        progress("comparing looped with fixed depth", 0.0)
        comparison = compare_runs(settings)
        progress("comparing looped with fixed depth", 1.0)
        progress("drawing figures", 0.0)
        page = report(
            *source, fitted, comparison, folder,
            title=title, arms=arms, ladder=settings.ladder, further=after_report(settings),
        )  # fmt: skip
        progress("drawing figures", 1.0)
    *laws, depth = fitted.headlines()
    return page, [*laws, comparison.headline(), depth]


def _fit(overrides: list[str]) -> str:
    from analysis import StudyFit
    from analysis.study.brief import brief
    from analysis.study.device_hours import DeviceHoursFit
    from analysis.study.points import IsoflopFit

    settings = compose_table("fit", overrides)
    fitted = fit_sweep(settings)
    if settings.format == "json":
        return str(fitted.to_json())
    cost = [f"cost={settings.cost}"] if settings.cost != "flops" else []
    if isinstance(fitted, (IsoflopFit, DeviceHoursFit)):
        return "\n".join([str(fitted.summary()), "", next_command("report", overrides, *cost)])
    if not isinstance(fitted, StudyFit):
        return str(fitted.summary())  # a law of points has no report
    lines = [str(fitted.summary()), "", *fitted.headlines()] if settings.details else [brief(fitted)]
    if settings.keeps_results:
        more = "" if settings.details else "; details=true prints everything"
        lines.append(f"written: {settings.results / LAWS}{more}")
    if remedy := without_law(settings):
        lines.append(": ".join(filter(None, remedy)))
    return "\n".join([*lines, next_command("compare", overrides, *cost)])


def _report(overrides: list[str]) -> str:
    settings = compose_table("report", overrides)
    page = str(report_sweep(settings)[0])
    if settings.format == "json":
        return to_json({"path": page})
    return "\n".join([page, *after_report(settings)])


COMMANDS = {
    "fit": Command(
        run=_fit,
        summary="scaling laws with confidence intervals, or the reasons for none",
        example="loopscale fit data=points.csv columns.compute=flops columns.x=params columns.loss=loss",
        settings="table/fit",
    ),
    "report": Command(
        run=_report,
        summary="figures (PDF, PNG, CSV) and one self-contained HTML page",
        example="loopscale report data=parcae_published",
        settings="table/report",
    ),
}
