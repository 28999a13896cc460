"""Regenerate every figure and number of the study from its committed tables: make study-figures.

Every grid gets its report (laws, comparison, figures), and every ladder of transformers its multipliers.
summary.json has what the reports do not say: the
learning rates tried and their losses; what the rates chosen cost at the corners of the grid, and the optima
and exponents when that is taken off; what each sweep took, and how many of the FLOPs expected it executed;
what twice the loops are worth at equal tokens; what the smaller budgets foretell of the largest; the laws
over both scales of a core alone. The tables of README.md are written from these files by tables.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import chdtri, stdtrit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import loopscale
from analysis import FitConfig, fit, read_tables
from analysis.result_files import write_result
from analysis.serialize import to_jsonable
from docs.study.tables import fill
from harness.storage.files import json_text
from validation.stability import unstable

STUDY = Path(__file__).resolve().parent
GRIDS = ("study_60k", "study_30k", "study_15k", "study_30k_english")
LADDERS = ("headline_tiny",)  # looped models beside plain transformers
STABILITY = STUDY.parent / "validation" / "stability.json"
SCALES = ("study_15k", "study_30k")  # of one shape, a core alone, in two widths
RATE = "muon_learning_rate"


def rates(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the losses of a sweep of learning rates, best first."""
    columns = ["target_flops", "mean_recurrence", RATE, "adamw_learning_rate", "val_loss_nats"]
    return list(runs.sort_values(["target_flops", "val_loss_nats"])[columns].to_dict("records"))


def costs(runs: pd.DataFrame) -> dict[str, float]:
    """Return what a sweep took: hours, FLOPs, and executed FLOPs over those expected of its depths.

    Of a trunk every run pays the share that its table names, in FLOPs and in hours.
    """
    done = runs[runs["status"] == "done"]
    ratio = done["executed_flops"] / done["expected_flops"]
    own = done["executed_flops"] - done["trunk_flops"].fillna(0.0) + done["trunk_share_flops"].fillna(0.0)
    return {
        "runs": len(done),
        "nominal_flops": float(done["nominal_flops"].sum()),
        "paid_flops": float(own.sum()),
        "executed_over_expected": float(done["executed_flops"].sum() / done["expected_flops"].sum()),
        "executed_over_expected_least": float(ratio.min()),
        "executed_over_expected_most": float(ratio.max()),
        "core_hours": float((done["device_s"] * own / done["executed_flops"]).sum() / 3600),
        "utilisation_median": float(done["mfu"].median()),
        "attempts": int(done["attempts"].sum()),
    }


def worth_of_doubling(runs: pd.DataFrame) -> dict[str, Any]:
    """Return how far twice the loops lower the loss at equal tokens, in nats, with 95 % intervals.

    The loss beside a quadratic in log2 tokens and log2 of the recurrence with their product, over the looped
    runs: `nats` at the geometric mean of the tokens (`tokens`), `nats_per_doubling_of_tokens` what twice the
    tokens add to it, `rms_nats` what is left. Errors allow for noise that all runs of one recurrence share
    (their trunk): clusters by recurrence, Student's t with two degrees of freedom fewer than recurrences.
    """
    looped = runs[(runs["kind"] == "looped") & (runs["status"] == "done")]
    tokens = np.log2(looped["tokens"].to_numpy(float))
    middle = float(tokens.mean())
    tokens -= middle
    loops = np.log2(looped["mean_recurrence"].to_numpy(float))
    x = np.stack([np.ones_like(tokens), tokens, tokens**2, loops, (loops - loops.mean()) * tokens], -1)
    y = looped["val_loss_nats"].to_numpy(float)
    inverse = np.linalg.inv(x.T @ x)
    coefficients = inverse @ x.T @ y
    residual = y - x @ coefficients
    scores = pd.DataFrame(x * residual[:, None])
    clusters = scores.groupby(looped["mean_recurrence"].to_numpy(float)).sum().to_numpy()
    count = len(clusters)
    variance = inverse @ (clusters.T @ clusters) @ inverse * count / (count - 1)
    halves = float(stdtrit(count - 2, 0.975)) * np.sqrt(np.diag(variance))
    found: dict[str, Any] = {
        name: [float(v) for v in (-at, -at - half, -at + half)]
        for name, at, half in zip(
            ("nats", "nats_per_doubling_of_tokens"), coefficients[3:], halves[3:], strict=True
        )
    }
    spread = float(np.sqrt(residual @ residual / (len(y) - len(coefficients))))
    return found | {"tokens": 2**middle, "rms_nats": spread, "runs": len(looped)}


def regrets(grid: pd.DataFrame, corners: pd.DataFrame) -> pd.DataFrame:
    """Return, for every corner, by how much the best of its rates is below the grid's own.

    Columns: target_flops, mean_recurrence, loss at the grid's rate, best rate, regret_nats. The best is the
    least of the losses tried, or of the parabola through three of them in the log of the rate where that has
    its minimum among them.
    """
    rows = []
    for (flops, mean), tried in corners.groupby(["target_flops", "mean_recurrence"]):
        at = (grid["target_flops"] == flops) & (grid["mean_recurrence"] == mean) & (grid["kind"] == "looped")
        own = grid[at & (grid["seed"] == 0)]
        every = pd.concat([tried, own]).sort_values(RATE)
        x, y = np.log2(every[RATE].to_numpy(float)), every["val_loss_nats"].to_numpy(float)
        best, least = float(2 ** x[y.argmin()]), float(y.min())
        if len(x) == 3 and 0 < y.argmin() < 2:
            a, b, c = np.polyfit(x, y, 2)
            best, least = float(2 ** (-b / 2 / a)), float(c - b * b / 4 / a)
        rows.append(
            {
                "target_flops": flops,
                "mean_recurrence": mean,
                "losses_nats": dict(zip(map(str, every[RATE]), y.tolist(), strict=True)),
                "best_rate": best,
                "regret_nats": float(own["val_loss_nats"].iloc[0]) - least,
            }
        )
    return pd.DataFrame(rows)


def without_regret(grid: pd.DataFrame, corners: pd.DataFrame) -> pd.DataFrame:
    """Return the grid's runs with the regret taken off, bilinear in the logs of recurrence and budget."""
    table = corners.pivot(index="mean_recurrence", columns="target_flops", values="regret_nats")
    depth, flops = np.log(grid["mean_recurrence"]), np.log(grid["target_flops"])
    (low, high), (least, most) = np.log(table.index), np.log(table.columns)
    across, along = (depth - low) / (high - low), (flops - least) / (most - least)
    corner = table.to_numpy(float)
    regret = (1 - across) * ((1 - along) * corner[0, 0] + along * corner[0, 1])
    regret += across * ((1 - along) * corner[1, 0] + along * corner[1, 1])
    looped = grid["kind"] == "looped"
    return grid.assign(val_loss_nats=grid["val_loss_nats"] - regret.where(looped, 0.0))


def exponents(runs: pd.DataFrame, depths: pd.DataFrame) -> dict[str, Any]:
    """Return the laws and the optima of every estimator, by quantity and budget."""
    found = fit(runs, depths.iloc[:0], FitConfig(validation=False)).to_dict()["groups"][0]
    return {
        estimator["name"]: {
            "laws": estimator["laws"],
            "optima": {
                quantity: {f"{at['budget_flops']:.3g}": at["value"] for at in optima}
                for quantity, optima in estimator["optima"].items()
            },
        }
        for estimator in found["estimators"]
    }


def foretold(grid: str, runs: pd.DataFrame, depths: pd.DataFrame) -> dict[str, Any]:
    """Return the optimum at the largest budget, as the smaller budgets foretell it and as it was fitted.

    Both by the default estimator: the power law of the smaller budgets with its band, and the curve's own
    minimum with its interval in the laws of the grid; a refusal where the smaller budgets have no law. Runs
    of one recurrence share their trunk's noise, so that the largest budget is not wholly new.
    """
    largest = runs["target_flops"].max()
    before = runs[runs["target_flops"] < largest]
    smaller = fit(before, depths.iloc[:0], FitConfig(validation=False)).groups[0]
    default = smaller.estimator()
    whole = json.loads((STUDY / grid / "laws.json").read_text(encoding="utf-8"))["groups"][0]["estimators"]
    optima = next(estimator["optima"] for estimator in whole if estimator["name"] == default.name)
    found: dict[str, Any] = {"flops": float(largest)}
    for quantity, law in default.laws.items():
        if law.exponent is None:
            found[quantity] = {"refusal": law.refusal}
            continue
        row = smaller.predict(largest).iloc[0]
        own = next(at for at in optima[quantity] if at["budget_flops"] == largest)
        found[quantity] = {
            "foretold": [float(row[quantity]), float(row[f"{quantity}_low"]), float(row[f"{quantity}_high"])],
            "fitted": [own["value"], own["low"], own["high"]],
        }
    return found


def over_scales(tables: list[tuple[pd.DataFrame, pd.DataFrame]]) -> dict[str, Any]:
    """Return the laws that hold over several scales: the worth of a loop, and the unified law jointly."""
    runs, depths = (pd.concat(frames, ignore_index=True) for frames in zip(*tables, strict=True))
    study = fit(runs, depths)
    found = {law.law: law.fit.to_dict() if law.fit else {"refusal": law.refusal} for law in study.run_laws}
    kept = (
        "formula",
        "points",
        "parameters",
        "intervals",
        "rms_nats",
        "resampling",
        "undetermined",
        "refusal",
    )
    laws = {
        name: {key: law[key] for key in kept if key in law}
        for name, law in found.items()
        if name in ("iso_depth", "unified_joint")
    }
    return {"laws": laws, "held_out": study.to_dict()["validation"]}


def stability() -> dict[str, dict[str, dict[str, Any]]]:
    """Return, by injection and learning rate, how many of the seeds were stable, and what all reached.

    The runs are those of validation/stability.py, and so is the rule for a run that is not stable. One that
    ended without a loss is in no mean: `losses` counts those that have one.
    """
    rows = json.loads(STABILITY.read_text(encoding="utf-8"))["runs"]
    runs = pd.DataFrame(rows).assign(stable=[not unstable(row) for row in rows])
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for (injection, rate), cell in runs.groupby(["injection", "adamw_learning_rate"]):
        table.setdefault(str(injection), {})[str(rate)] = {
            "stable": int(cell["stable"].sum()),
            "runs": len(cell),
            "losses": int(cell["val_loss_nats"].count()),
            "loss_mean_nats": float(cell["val_loss_nats"].mean()),
            "loss_sd_nats": float(cell["val_loss_nats"].std()),
            "spectral_radius_max": float(cell["spectral_radius_max"].max()),
        }
    return table


def scatter(runs: pd.DataFrame) -> dict[str, Any]:
    """Return how far runs of equal settings scatter, and their cells about a smooth surface, in nats.

    `seed_sd_nats` is pooled over the cells of recurrence and budget, with its 95 % interval (chi-squared);
    `fit_rms_nats` is what is left of the cells' means beside a quadratic in log recurrence and log FLOPs.
    """
    cells = runs[runs["status"] == "done"].groupby(["mean_recurrence", "target_flops"])["val_loss_nats"]
    freedom = int((cells.count() - 1).sum())
    squares = float(cells.apply(lambda losses: np.square(losses - losses.mean()).sum()).sum())
    ends = [float(np.sqrt(squares / chdtri(freedom, tail))) for tail in (0.025, 0.975)]
    means = cells.mean().reset_index()
    loops, flops = np.log(means["mean_recurrence"]), np.log(means["target_flops"])
    x = np.stack([np.ones(len(means)), loops, loops**2, flops, flops**2, loops * flops], -1)
    y = means["val_loss_nats"].to_numpy(float)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return {
        "runs": int(cells.count().sum()),
        "degrees_of_freedom": freedom,
        "seed_sd_nats": [float(np.sqrt(squares / freedom)), *ends],
        "fit_rms_nats": float(np.sqrt(residual @ residual / (len(y) - x.shape[1]))),
    }


def main() -> None:
    """Write the reports and the summary of all sweeps whose tables are there."""
    tables = {path.parent.name: read_tables(path.parent) for path in sorted(STUDY.glob("*/runs.csv"))}
    for name in GRIDS:
        if name in tables:
            print(loopscale.report([f"sweep={name}", f"root={STUDY}"]))
    for name in LADDERS:
        loopscale.compare([f"sweep={name}", f"root={STUDY}", "against=transformer"])
    numbers: dict[str, Any] = {
        "costs": {name: costs(runs) for name, (runs, _) in tables.items()},
        "rates": {name: rates(runs) for name, (runs, _) in tables.items() if "_rates" in name},
        "stability": stability(),
        "foretold": {name: foretold(name, *tables[name]) for name in GRIDS if name in tables},
        "worth_of_doubling": {name: worth_of_doubling(tables[name][0]) for name in GRIDS if name in tables},
    }
    numbers["scatter"] = {
        path.stem: scatter(pd.read_csv(path)) for path in sorted(STUDY.glob("study_scatter/*.csv"))
    }
    for name, (corner_runs, _) in tables.items():
        if not name.endswith("_corners"):
            continue
        runs, depths = tables[name.removesuffix("_corners")]
        regret = regrets(runs, corner_runs)
        numbers[name] = {
            "regret": regret.to_dict("records"),
            "without_regret": exponents(without_regret(runs, regret), depths),
        }
    if all(name in tables for name in SCALES):
        numbers["over_scales"] = over_scales([tables[name] for name in SCALES])
    write_result(STUDY / "summary.json", json_text(to_jsonable(numbers)))
    for page in (STUDY / "README.md", *(STUDY / name / "README.md" for name in LADDERS)):
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
