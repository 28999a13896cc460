"""`loopscale fit`, `compare` and `report`: laws and figures of a collected sweep or of the table `data`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from analysis.result_files import write_result
from model.config_validation import ConfigError, build
from sweeps.cli.after_report import after_report, without_law
from sweeps.cli.help import Command
from sweeps.cli.tables import to_json
from sweeps.config.commands import LAWS, TRANSFORMER, CompareConfig, FitTableConfig
from sweeps.config.compose import compose_table
from sweeps.config.next_command import next_command

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Comparison, FitConfig, IsoflopFit, LawFit, StudyFit
    from analysis.compare.arm_comparison import ArmComparison
    from analysis.compare.multiplier_comparison import MultiplierComparison
    from analysis.laws.curve_laws import CurveLaws
    from analysis.laws.task_score import TaskLaw
    from analysis.published.comparison import PublishedComparison
    from analysis.study.device_hours import DeviceHoursFit
    from analysis.tables.points import PointsTable

    AnyFit: TypeAlias = StudyFit | IsoflopFit | LawFit | CurveLaws | TaskLaw | DeviceHoursFit
    AnyComparison: TypeAlias = Comparison | ArmComparison | MultiplierComparison | PublishedComparison

PUBLISHED = "parcae_published"
Settings = TypeVar("Settings", bound=FitTableConfig)
Result = TypeVar("Result")


def _names_source(function: Callable[[Settings], Result]) -> Callable[[Settings], Result]:
    """Let every refusal of a table name the file or folder that it comes from."""

    @functools.wraps(function)
    def naming(settings: Settings) -> Result:
        from analysis.tables.schema import TableError

        try:
            return function(settings)
        except TableError as error:
            source = settings.data or str(settings.folder)
            if Path(source).name in str(error):
                raise
            raise TableError(f"{source}: {error}") from error

    return naming


@_names_source
def fit_sweep(settings: FitTableConfig) -> AnyFit:
    """Fit the sweep's tables and write laws.json beside them; with `data`, fit that and write to `out` alone.

    Points without runs give isoFLOP laws, or the one law that `law` names.
    """
    from analysis import fit, isoflop
    from analysis.study.cross_run_laws import fit_law_to_runs
    from analysis.study.points_laws import fit_law_to_points
    from analysis.tables.points import PointsTable
    from sweeps.cli.progress import stage_progress

    source, config = _source(settings), _fit_config(settings)
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
        write_result(_results(settings) / LAWS, study.to_json() + "\n")
    return study


@_names_source
def compare_data(settings: CompareConfig) -> AnyComparison:
    """Compare looped with fixed depth, arms or transformers, in a sweep's runs or the published rows."""
    if settings.cost != "flops":
        raise ConfigError(
            f"cost={settings.cost}: runs are compared at equal FLOPs; use loopscale fit or report"
        )
    if settings.data == PUBLISHED:
        from analysis.published.comparison import published_comparison

        return published_comparison(settings.confidence)
    if settings.against == TRANSFORMER:
        return compare_ladder(settings)
    return compare_recipes(settings) if settings.arms or settings.against else compare_sweep(settings)


def compare_ladder(settings: CompareConfig) -> MultiplierComparison:
    """Compare with plain transformers; write multiplier.json and a figure beside a sweep's tables."""
    from analysis.compare.multiplier import compare_with_transformers
    from analysis.figures.multiplier import multiplier_figures
    from analysis.figures.style import save_figure

    source = _source(settings)
    if not isinstance(source, tuple):
        raise ConfigError(f"data={settings.data}: transformers are compared in a runs table alone")
    comparison = compare_with_transformers(source[0], _fit_config(settings), settings.ladder)
    if settings.keeps_results:
        write_result(_results(settings) / "multiplier.json", comparison.to_json() + "\n")
        for drawn in multiplier_figures(comparison):
            save_figure(drawn, settings.results)
    return comparison


def compare_recipes(settings: CompareConfig) -> ArmComparison:
    """Compare the arms of an axis, or two sweeps; write arms.json and a figure beside a sweep's tables."""
    from analysis.figures.arms import arms_figure
    from analysis.figures.style import save_figure

    comparison = _compare_arms(settings)
    if settings.keeps_results:
        write_result(_results(settings) / "arms.json", comparison.to_json() + "\n")
        if drawn := arms_figure(comparison):
            save_figure(drawn, settings.results)
    return comparison


def _compare_arms(settings: CompareConfig) -> ArmComparison:
    """Compare the arms of an axis, or the sweep with that of `against`."""
    import pandas as pd

    from analysis.compare.arms import compare_arms

    source, axis = _source(settings), settings.arms or "sweep"
    if not isinstance(source, tuple):
        raise ConfigError(f"data={settings.data}: arms are compared in a runs table alone")
    runs = source[0]
    if settings.against:
        named = Path(settings.against)
        other = settings.against if named.exists() else str(Path(settings.root) / settings.against)
        joined = _source(dataclasses.replace(settings, data=other))
        if not isinstance(joined, tuple):
            raise ConfigError(f"against={settings.against}: it is no runs table")
        runs = pd.concat([runs, joined[0]], ignore_index=True)
    reference = None if settings.reference is None else format(settings.reference, "")
    return compare_arms(runs, axis, _fit_config(settings), reference)


def compare_sweep(settings: FitTableConfig) -> Comparison:
    """Compare looped with fixed depth in a runs table; write comparison.json and figures beside a sweep's."""
    from analysis.figures.compare import compare_figures
    from analysis.figures.style import save_figure

    comparison = compare_runs(settings)
    if settings.keeps_results:
        for drawn in compare_figures(comparison):
            save_figure(drawn, settings.results)
    return comparison


def compare_runs(settings: FitTableConfig) -> Comparison:
    """Compare looped with fixed depth in a runs table; write comparison.json beside a sweep's."""
    from analysis import compare
    from analysis.tables.readers import read_items

    source = _source(settings)
    if not isinstance(source, tuple):
        raise ConfigError(f"data={settings.data}: looped and fixed depth are compared in a runs table alone")
    folder = settings.folder if settings.data is None else Path(settings.data)
    items = read_items(folder) if folder.is_dir() else None
    comparison = compare(source[0], _fit_config(settings), items)
    if settings.keeps_results:
        write_result(_results(settings) / "comparison.json", comparison.to_json() + "\n")
    return comparison


def comparison_figures(settings: CompareConfig, comparison: AnyComparison) -> list[Path]:
    """Return the figures that `compare_data` wrote: none of other data than a sweep, unless `out` is set."""
    from analysis import Comparison
    from analysis.compare.arm_comparison import ArmComparison
    from analysis.compare.multiplier_comparison import MultiplierComparison
    from analysis.figures.compare import names

    if settings.keeps_results and isinstance(comparison, MultiplierComparison):
        return sorted(settings.results.glob("multiplier*.pdf"))
    if settings.keeps_results and isinstance(comparison, ArmComparison):
        return [path for path in [settings.results / "arms.pdf"] if path.exists()]
    if not settings.keeps_results or not isinstance(comparison, Comparison):
        return []
    return [settings.results / f"{name}.pdf" for name in names(comparison)]


@_names_source
def report_sweep(settings: CompareConfig) -> tuple[Path, list[str]]:
    """Write the report with its figures; return the path of its page and one line per law.

    A sweep's goes to `<sweep>/report/`, that of other data to `<root>/reports/NAME/`, with `out` both to
    `<out>/report/`. It compares the arms of every axis, or of those that the settings name.
    """
    if settings.law != "isoflop":
        raise ConfigError(f"law={settings.law}: a report shows the isoFLOP laws; use loopscale fit")
    if settings.data == PUBLISHED:
        from analysis.report.report import parcae_report

        return parcae_report(_folder(settings))
    from analysis import StudyFit, report
    from analysis.report.report import device_hours_report, points_report
    from analysis.study.device_hours import DeviceHoursFit
    from analysis.study.points import IsoflopFit

    named = settings.arms or settings.against not in (None, TRANSFORMER)
    arms = (_compare_arms(settings),) if named else None
    source, fitted = _source(settings), fit_sweep(settings)
    folder, title = _folder(settings), settings.data or settings.sweep
    if isinstance(fitted, IsoflopFit):
        return points_report(fitted, folder, title=title), fitted.headlines()
    if isinstance(fitted, DeviceHoursFit):
        return device_hours_report(fitted, folder, title=title), fitted.headlines()
    assert isinstance(source, tuple) and isinstance(fitted, StudyFit)
    comparison = compare_runs(settings)
    page = report(
        *source, fitted, comparison, folder,
        title=title, arms=arms, ladder=settings.ladder, further=after_report(settings),
    )  # fmt: skip
    *laws, depth = fitted.headlines()
    return page, [*laws, comparison.headline(), depth]


def _source(settings: FitTableConfig) -> tuple[pd.DataFrame, pd.DataFrame] | PointsTable:
    """Return the runs and depths tables, or the points of a table of another kind."""
    from analysis import read_tables
    from analysis.tables.points import filtered, points_table
    from analysis.tables.readers import read_source

    if settings.data == PUBLISHED:
        raise ConfigError(f"data={PUBLISHED} has tables but no runs: loopscale report or compare")
    data = settings.data or str(settings.folder)
    source = read_source(data, bool(settings.columns)) if settings.data else read_tables(settings.folder)
    if isinstance(source, tuple):
        return filtered(source[0], settings.where, "the runs table"), source[1]
    name = data if data.startswith("wandb:") else Path(data).name
    return points_table(
        source, settings.columns, where=settings.where, x=settings.x, unit=settings.unit, name=name
    )


def _results(settings: FitTableConfig) -> Path:
    """Return the folder of the results, made if it is not there."""
    folder = settings.results
    if settings.out is None and folder != settings.folder and not folder.is_dir():
        print(f"{settings.folder} may not be written: results go to ./{folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _folder(settings: FitTableConfig) -> Path:
    suffix = "" if settings.cost == "flops" else f"_{settings.cost}"
    if settings.out is not None or settings.data is None:
        return _results(settings) / f"report{suffix}"
    name = settings.data.removeprefix("wandb:").rstrip("/")
    return Path(settings.root) / "reports" / f"{Path(name).stem}{suffix}"


def _fit_config(settings: FitTableConfig) -> FitConfig:
    from analysis import FitConfig

    names = {item.name for item in dataclasses.fields(FitConfig)}
    known: dict[str, Any] = {key: value for key, value in vars(settings).items() if key in names}
    return build(FitConfig, known)


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


def _compare(overrides: list[str]) -> str:
    settings = compose_table("compare", overrides)
    if settings.data not in (None, PUBLISHED) and settings.out is None and settings.format == "text":
        settings = dataclasses.replace(settings, out=str(_folder(settings)))
    comparison = compare_data(settings)
    if settings.format == "json":
        return str(comparison.to_json())
    lines = [str(comparison.summary()), ""]
    if figures := ", ".join(map(str, comparison_figures(settings, comparison))):
        lines.append(f"figures (PNG and data as CSV beside them): {figures}")
    arms = [text for text in overrides if text.startswith(("arms=", "reference=", "against=", "ladder="))]
    return "\n".join([*lines, next_command("report", overrides, *arms)])


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
    "compare": Command(
        run=_compare,
        summary="looped against fixed depth, the arms of an axis or a ladder of transformers",
        example="loopscale compare sweep=demo",
        settings="table/compare",
    ),
}
