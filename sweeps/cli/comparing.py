"""`loopscale compare`: looped with fixed depth, the arms of an axis, or a ladder of transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from analysis.result_files import write_result
from model.config_validation import ConfigError
from sweeps.cli.help import Command
from sweeps.cli.sources import PUBLISHED, fit_config, names_source, report_folder, results_folder, source_of
from sweeps.config.commands import TRANSFORMER, CompareConfig, FitTableConfig
from sweeps.config.compose import compose_table
from sweeps.config.next_command import next_command

if TYPE_CHECKING:
    from analysis import Comparison
    from analysis.compare.arm_comparison import ArmComparison
    from analysis.compare.multiplier_comparison import MultiplierComparison
    from analysis.published.comparison import PublishedComparison

    AnyComparison: TypeAlias = Comparison | ArmComparison | MultiplierComparison | PublishedComparison


@names_source
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

    source = source_of(settings)
    if not isinstance(source, tuple):
        raise ConfigError(f"data={settings.data}: transformers are compared in a runs table alone")
    comparison = compare_with_transformers(source[0], fit_config(settings), settings.ladder)
    if settings.keeps_results:
        write_result(results_folder(settings) / "multiplier.json", comparison.to_json() + "\n")
        for drawn in multiplier_figures(comparison):
            save_figure(drawn, settings.results)
    return comparison


def compare_recipes(settings: CompareConfig) -> ArmComparison:
    """Compare the arms of an axis, or two sweeps; write arms.json and a figure beside a sweep's tables."""
    from analysis.figures.arms import arms_figure
    from analysis.figures.style import save_figure

    comparison = compare_arms_of(settings)
    if settings.keeps_results:
        write_result(results_folder(settings) / "arms.json", comparison.to_json() + "\n")
        if drawn := arms_figure(comparison):
            save_figure(drawn, settings.results)
    return comparison


def compare_arms_of(settings: CompareConfig) -> ArmComparison:
    """Compare the arms of an axis, or the sweep with that of `against`."""
    import pandas as pd

    from analysis.compare.arms import compare_arms

    source, axis = source_of(settings), settings.arms or "sweep"
    if not isinstance(source, tuple):
        raise ConfigError(f"data={settings.data}: arms are compared in a runs table alone")
    runs = source[0]
    if settings.against:
        named = Path(settings.against)
        other = settings.against if named.exists() else str(Path(settings.root) / settings.against)
        joined = source_of(dataclasses.replace(settings, data=other))
        if not isinstance(joined, tuple):
            raise ConfigError(f"against={settings.against}: it is no runs table")
        runs = pd.concat([runs, joined[0]], ignore_index=True)
    reference = None if settings.reference is None else format(settings.reference, "")
    return compare_arms(runs, axis, fit_config(settings), reference)


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

    source = source_of(settings)
    if not isinstance(source, tuple):
        raise ConfigError(f"data={settings.data}: looped and fixed depth are compared in a runs table alone")
    folder = settings.folder if settings.data is None else Path(settings.data)
    items = read_items(folder) if folder.is_dir() else None
    comparison = compare(source[0], fit_config(settings), items)
    if settings.keeps_results:
        write_result(results_folder(settings) / "comparison.json", comparison.to_json() + "\n")
    return comparison


def comparison_figures(settings: CompareConfig, comparison: AnyComparison) -> list[Path]:
    """Return the figures that `compare_data` wrote: none of other data than a sweep, unless `out` is set."""
    from analysis import Comparison
    from analysis.compare.arm_comparison import ArmComparison
    from analysis.compare.multiplier_comparison import MultiplierComparison
    from analysis.figures import compare, multiplier

    if settings.keeps_results and isinstance(comparison, MultiplierComparison):
        return [settings.results / f"{name}.pdf" for name in multiplier.names(comparison)]
    if settings.keeps_results and isinstance(comparison, ArmComparison):
        return [path for path in [settings.results / "arms.pdf"] if path.exists()]
    if not settings.keeps_results or not isinstance(comparison, Comparison):
        return []
    return [settings.results / f"{name}.pdf" for name in compare.names(comparison)]


def _compare(overrides: list[str]) -> str:
    settings = compose_table("compare", overrides)
    if settings.data not in (None, PUBLISHED) and settings.out is None and settings.format == "text":
        settings = dataclasses.replace(settings, out=str(report_folder(settings)))
    comparison = compare_data(settings)
    if settings.format == "json":
        return str(comparison.to_json())
    lines = [str(comparison.summary()), ""]
    if figures := ", ".join(map(str, comparison_figures(settings, comparison))):
        lines.append(f"figures (PNG and data as CSV beside them): {figures}")
    arms = [text for text in overrides if text.startswith(("arms=", "reference=", "against=", "ladder="))]
    return "\n".join([*lines, next_command("report", overrides, *arms)])


COMMANDS = {
    "compare": Command(
        run=_compare,
        summary="looped against fixed depth, the arms of an axis or a ladder of transformers",
        example="loopscale compare sweep=demo",
        settings="table/compare",
    ),
}
