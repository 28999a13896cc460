"""How fast is a certified surface fit with 1000 bootstraps, and how do others do on the same points?

python benchmarks/fit.py [points.csv]
python benchmarks/fit.py curve [largest=5000] [points=20000]

The file needs columns params, flops and loss; with a column epoch_outlier those rows are dropped, which
leaves the 240 Chinchilla points of Besiroglu et al. 2024. Without a file a synthetic set of the same size
stands in. All methods run in this one process. Peers: the published multi-start protocol (L-BFGS-B with
analytic gradients over a grid of starts; a sample of its starts is timed and scaled to its 4500), variable
projection with scipy (the method of the package vpnls, which no index offers: a grid of exponents, linear
amplitudes, then one least-squares descent per resample), and the package simple-scaling-laws where it is
installed (it needs Python 3.12).

`curve` shows how time and memory grow: `fit` of a collected sweep of 100, 1,000 and 5,000 runs with 24 depths
each (validation up to 1,000), and of tables of 200 to 1,000,000 points, each in a process of its own. Printed
are CPU seconds, wall seconds, the peak of resident memory, and the exponent of growth between two sizes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares, minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import FitConfig, TableError, fit, isoflop
from analysis.laws.surface import fit_surface, refit, surface_terms
from analysis.stats.bootstrap import resampling_weights
from tests.analysis.synthetic import PAPER_GRID, study

RESAMPLES = 1000
STARTS = 4500
DELTA = 1e-3
RUNS, POINTS, VALIDATED = (100, 1_000, 5_000), (200, 2_000, 20_000, 200_000, 1_000_000), 1_000


def points(path: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log N, log D and loss."""
    if path:
        data = pd.read_csv(path)
        data = data[~data["epoch_outlier"]] if "epoch_outlier" in data else data
        n, c, loss = (data[name].to_numpy(float) for name in ("params", "flops", "loss"))
        return np.log(n), np.log(c / 6 / n), loss
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7.6, 10.2, 240), 10 ** rng.uniform(8.5, 12, 240)
    loss = 1.82 + 478 * n**-0.347 + 2143 * d**-0.367
    return np.log(n), np.log(d), loss * np.exp(0.005 * rng.standard_normal(240))


def ours(u: np.ndarray, v: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """Time the certified fit and the bootstrap of this room."""
    clock = time.perf_counter()
    surface = fit_surface(u, v, loss, DELTA)
    fitted = time.perf_counter() - clock
    clock = time.perf_counter()
    weights = resampling_weights("pairs", len(loss), None, RESAMPLES, 0)
    found = refit(surface, np.repeat(loss[None], RESAMPLES, 0), weights)
    resampled = time.perf_counter() - clock
    print(
        f"loopscale: {fitted:.3f} s to the optimum {surface.fit.objective[0]:.12e}, gradient "
        f"{surface.fit.gradient[0]:.1e}, curvature {surface.fit.curvature[0]:.1e}, "
        f"{surface.starts_agreeing} of {surface.starts} starts agree"
    )
    print(
        f"          {resampled:.3f} s for {RESAMPLES} bootstraps, gradients to {found.fit.gradient.max():.1e}"
    )
    return fitted, resampled


def huber(theta: np.ndarray, phi: np.ndarray, log_loss: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum of Huber costs of the log loss and its gradient."""
    logs = phi @ theta
    top = logs.max(0)
    share = np.exp(logs - top)
    total = share.sum(0)
    residual = top + np.log(total) - log_loss
    psi = np.clip(residual, -DELTA, DELTA)
    cost = np.where(np.abs(residual) <= DELTA, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2)).sum()
    return float(cost), np.einsum("n,tn,tnp->p", psi, share / total, phi)


def multi_start(u: np.ndarray, v: np.ndarray, loss: np.ndarray, sample: int = 40) -> float:
    """Time the published protocol on a sample of its starts; return seconds for all of them."""
    phi, log_loss = surface_terms(u, v), np.log(loss)
    grid = (
        np.array(
            np.meshgrid(
                range(0, 30, 5),
                range(0, 30, 5),
                np.arange(-1, 1.5, 0.5),
                np.arange(0, 2.5, 0.5),
                np.arange(0, 2.5, 0.5),
            )
        )
        .reshape(5, -1)
        .T
    )
    chosen = grid[np.random.default_rng(0).choice(len(grid), sample, replace=False)]
    clock, best, arrived = time.perf_counter(), np.inf, []
    for a, b, e, alpha, beta in chosen:
        found = minimize(
            huber,
            [e, a, b, alpha, beta],
            args=(phi, log_loss),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-12},
        )
        arrived.append(found.fun)
        best = min(best, found.fun)
    seconds = (time.perf_counter() - clock) / sample * STARTS
    share = np.mean(np.array(arrived) < best * (1 + 1e-6))
    print(
        f"multi-start L-BFGS: {seconds:.0f} s for {STARTS} starts (from {sample}); best {best:.12e}, "
        f"{share:.0%} of the starts arrive there"
    )
    return seconds


def projection(u: np.ndarray, v: np.ndarray, loss: np.ndarray, resamples: int = 20) -> tuple[float, float]:
    """Time variable projection with scipy: a grid of exponents, then one descent per resample."""
    u, v, log_loss = u - u.mean(), v - v.mean(), np.log(loss)

    def residual(theta: np.ndarray, count: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta = theta
        prediction = np.exp(e) + np.exp(a - alpha * u) + np.exp(b - beta * v)
        return np.sqrt(count) * (np.log(prediction) - log_loss)

    def fit(count: np.ndarray) -> None:
        best = (np.inf, np.zeros(5))
        for alpha in np.geomspace(0.05, 2, 12):
            for beta in np.geomspace(0.05, 2, 12):
                design = np.stack([np.ones_like(u), np.exp(-alpha * u), np.exp(-beta * v)], -1)
                solved = np.maximum(np.linalg.lstsq(design, loss, rcond=None)[0], 1e-3)
                error = float(np.square(np.log(design @ solved) - log_loss).sum())
                if error < best[0]:
                    best = (error, np.array([*np.log(solved), alpha, beta]))
        least_squares(residual, best[1], loss="huber", f_scale=DELTA, args=(count,), xtol=1e-12, ftol=1e-12)

    clock = time.perf_counter()
    fit(np.ones_like(loss))
    one = time.perf_counter() - clock
    weights = resampling_weights("pairs", len(loss), None, resamples, 0)
    clock = time.perf_counter()
    for count in weights:
        fit(count)
    many = (time.perf_counter() - clock) / resamples * RESAMPLES
    print(
        f"variable projection, scipy: {one:.3f} s, {many:.0f} s for {RESAMPLES} bootstraps (from {resamples})"
    )
    return one, many


def package(u: np.ndarray, v: np.ndarray, loss: np.ndarray) -> float | None:
    """Time simple-scaling-laws with as many bootstrap draws, where it is installed."""
    try:
        import polars
        import simple_scaling_laws
    except ImportError as error:
        print(f"simple-scaling-laws: not installed here ({error})")
        return None
    frame = polars.DataFrame(  # the package's own kind of table
        {
            "training_run_id": [f"run{i}" for i in range(len(loss))],
            "model_size__params": np.exp(u),
            "dataset_size__tokens": np.exp(v),
            "test_loss__nats": loss,
        }
    )
    clock = time.perf_counter()
    model = simple_scaling_laws.fit(frame, n_draws=RESAMPLES, seed=0)
    seconds = time.perf_counter() - clock
    values = {name: round(float(value), 5) for name, value in model.params("test_loss__nats").items()}
    print(
        f"simple-scaling-laws {simple_scaling_laws.__version__}: {seconds:.1f} s for fit and draws: {values}"
    )
    return seconds


def sweep(count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs and depths of a sweep over the paper's grid, with seeds enough for `count` runs."""
    grid, rng = study(budgets=PAPER_GRID)[0], np.random.default_rng(0)
    seeds = [grid.assign(seed=k, run_id=grid["run_id"] + f"-{k}") for k in range(-(-count // len(grid)))]
    runs = pd.concat(seeds, ignore_index=True).iloc[:count].reset_index(drop=True)
    runs["val_loss_nats"] += 0.005 * rng.standard_normal(count)
    looped = runs[runs["kind"] == "looped"]
    depth, mu = np.arange(1, 25), looped["mean_recurrence"].to_numpy()[:, None]
    gap = 0.8 * (np.exp(-7 * depth / mu) - np.exp(-7.0)) + 2e-4 * rng.standard_normal((len(looped), 24))
    losses = looped["val_loss_nats"].to_numpy()[:, None] + gap
    names = np.repeat(looped["run_id"].to_numpy(), 24)
    table = {"run_id": names, "depth": np.tile(depth, len(looped)), "val_loss_nats": losses.ravel()}
    return runs, pd.DataFrame({**table, "val_loss_se_nats": 0.003})


def isoflop_table(count: int) -> pd.DataFrame:
    """Return points at 20 budgets around the optimum of a known surface."""
    rng = np.random.default_rng(0)
    flops = np.geomspace(1e17, 1e21, 20)[np.arange(count) % 20]
    size = 4e8 * (flops / 1e19) ** 0.45 * np.exp(rng.uniform(-1.6, 1.6, count))
    loss = 1.69 + 406.4 * size**-0.34 + 410.7 * (flops / 6 / size) ** -0.28
    return pd.DataFrame(
        {"compute": flops, "x": size, "loss": loss + 0.003 * rng.standard_normal(count)},
    )


def one_size(kind: str, count: int) -> None:
    """Fit one table in this process and print CPU seconds, wall seconds, peak GB and what came of it."""
    config = FitConfig(validation=kind == "points" or count <= VALIDATED)
    tables = sweep(count) if kind == "runs" else (isoflop_table(count),)
    processor, wall, outcome = time.process_time(), time.perf_counter(), "fitted"
    try:
        fit(*tables, config) if kind == "runs" else isoflop(*tables, config=config)
    except TableError as error:
        outcome = f"refused: {error}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(time.process_time() - processor, time.perf_counter() - wall, peak, outcome, sep="\t")


def curve(largest: int = RUNS[-1], points: int = POINTS[-1]) -> None:
    """Print time and memory by size, and how they grow."""
    for kind, sizes in (("runs", RUNS), ("points", POINTS)):
        measured: dict[int, float] = {}
        for count in (size for size in sizes if size <= (largest if kind == "runs" else points)):
            command = [sys.executable, __file__, "size", kind, str(count)]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            processor, wall, peak, outcome = line.strip().split("\t")
            measured[count] = float(processor)
            taken = f"{float(processor):.1f} s of CPU, {float(wall):.1f} s, {float(peak):.2f} GB"
            print(f"{count:>9,} {kind}: {taken}, {outcome}", flush=True)
        for (small, quick), (large, slow) in pairwise(measured.items()):
            growth = np.log(slow / quick) / np.log(large / small)
            print(f"time grows as {kind}^{growth:.2f} from {small:,} to {large:,}")


def main(path: str | None) -> None:
    """Run all and print the ratios."""
    u, v, loss = points(path)
    print(f"{len(loss)} points")
    ours(u, v, loss)  # the first call pays for imports and caches
    fitted, resampled = ours(u, v, loss)
    print(f"ratio to multi-start: {multi_start(u, v, loss) / fitted:.0f}x for the fit")
    one, many = projection(u, v, loss)
    print(f"ratio to variable projection: {one / fitted:.1f}x fit, {many / resampled:.0f}x bootstrap")
    seconds = package(u, v, loss)
    if seconds is not None:
        print(f"ratio to simple-scaling-laws: {seconds / (fitted + resampled):.1f}x for fit and bootstrap")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["size", kind, count]:
            one_size(kind, int(count))
        case ["curve", *settings]:
            curve(**{name: int(value) for name, value in (text.split("=", 1) for text in settings)})
        case arguments:
            main(arguments[0] if arguments else None)
