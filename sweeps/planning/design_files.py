"""Chosen cells as files of conf/sweep: a new grid, or further runs of a sweep."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from harness.storage.files import write_text
from model.config_validation import ConfigError
from sweeps.config.folders import sweep_folder
from sweeps.config.study import ListedCells, SweepConfig

if TYPE_CHECKING:
    from analysis.design.fisher_information import Counts, FisherInformation

GRID = (
    "name",
    "mean_recurrences",
    "control",
    "budgets_flops",
    "seeds",
    "cells",
)  # keys of a sweep that a design replaces


class _Dumper(yaml.SafeDumper):
    """Writes 3.4e+11, not 340000000000.0."""

    def represent_large(self, value: float) -> yaml.ScalarNode:
        if not 1e6 <= value < np.inf:
            return self.represent_float(value)
        return self.represent_scalar("tag:yaml.org,2002:float", np.format_float_scientific(value, trim="0"))


_Dumper.add_representer(float, _Dumper.represent_large)


def searched_sweep(sweep: SweepConfig, knowledge: FisherInformation, counts: Counts) -> SweepConfig:
    """Return `sweep` with its grid replaced by the chosen cells of each budget; the control stays."""
    cells: dict[str, ListedCells] = {}
    for k in np.flatnonzero(counts.sum(1)):
        flops = float(knowledge.budgets_flops[k])
        for seeds in sorted(set(counts[k][counts[k] > 0].tolist())):
            chosen = [int(mu) for mu in knowledge.recurrences[counts[k] == seeds]]
            name = f"budget_{flops:.3g}".replace("+", "").replace(".", "_")
            cells[name if name not in cells else f"{name}_seeds_{seeds}"] = ListedCells(
                mean_recurrences=chosen, lengths=[flops], seeds=list(range(seeds))
            )
    budgets = [float(flops) for flops in knowledge.budgets_flops[counts.sum(1) > 0]]
    return replace(sweep, mean_recurrences=[], budgets_flops=budgets, seeds=[0], cells=cells)


def added_cells(sweep: SweepConfig, chosen: tuple[tuple[int, float, int], ...]) -> SweepConfig:
    """Return `sweep` with only the chosen cells (mean recurrence, budget, seed), under its own name."""
    recurrences, lengths, seeds = (list(column) for column in zip(*chosen, strict=True))
    cells = ListedCells(mean_recurrences=recurrences, lengths=lengths, seeds=seeds, zipped=True)
    return replace(sweep, mean_recurrences=[], control="none", cells={"next": cells})


def write_sweep(
    sweep: SweepConfig, parent: Path | None, suffix: str, head: list[str], *, rename: bool
) -> Path:
    """Write the sweep of the file `parent` with the grid of `sweep` as a new file; return it.

    No file is overwritten.

    Parameters
    ----------
    head : comment lines at the top of the file.
    rename : True for a sweep with a name of its own, False for runs that join those of the parent.

    Raises
    ------
    ConfigError : there is no parent.
    """
    if parent is None:
        raise ConfigError(
            "the command names no sweep file from which the grid could be written: add sweep=NAME"
        )
    folder, number = sweep_folder(parent), 1
    while (path := folder / f"{sweep.name}_{suffix}{number}.yaml").exists():
        number += 1
    content: dict[str, Any] = yaml.safe_load(parent.read_text(encoding="utf-8"))
    grid = {name: getattr(sweep, name) for name in GRID}
    grid["name"] = path.stem if rename else sweep.name
    grid["cells"] = {name: _changed(cells) for name, cells in sweep.cells.items()}
    content["sweep"] = content.get("sweep", {}) | grid
    comments = [f"# {line}".rstrip() for line in head]
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    write_text(path, "\n".join(["# @package _global_", *comments, text]))
    return path


def _changed(cells: ListedCells) -> dict[str, Any]:
    default = asdict(ListedCells())
    return {name: value for name, value in asdict(cells).items() if value != default[name]}
