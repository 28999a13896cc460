"""Write the golden files anew, from the code as it is: python -m tests.golden.make.

That says what the code does now, not that it is right. Whoever commits the result says why it had to change.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import loopscale
from tests.golden import cases
from tests.golden.cases import FIXED, GOLDEN, OLD, ROOT, SWEEP

SWEEPS = [  # shipped; a user's own are no business of the tests
    *("demo", "demo_quick", "isoflop_140m", "isoflop_370m", "scale_by_tokens", "stability", "study_15k"),
    *("study_15k_corners", "study_15k_rates", "study_30k", "study_30k_corners", "study_30k_english"),
    *("study_30k_rates", "study_60k", "study_60k_pilot", "study_60k_probe", "study_60k_rates"),
    "study_60k_rates_longer",
]
REHEARSED = ("demo", "study_30k_corners")
# Columns of the runs table by the version of it that brought them, as it was read at the time.
ADDED = {
    2: "lr_scaling skipped_steps loss_spikes device_s mfu data_wait_share peak_memory_bytes devices "
    "micro_batch_changed",
    3: "core_tasks core_extended_tasks trunk_steps trunk_flops trunk_share_flops",
    4: "recipe",
    5: "kernels",
}
PASSING = ("logs", "*.log", "*.lock", "*.pid", "lease", "keys", "jobs")  # names of machines and processes


def main() -> None:
    """Write plans.json, data.json, bits.json and the old folders with old.json."""
    os.environ |= FIXED | {"LOOPSCALE_CODE_VERSION": "0.1.0"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cases.write_corpora(folder)
        data = cases.corpus_data(folder, folder / "cache")
        write("data", cases.digests(folder, folder / "cache"))
        plans = {sweep: cases.planned(sweep, data) for sweep in SWEEPS}
        entered = {sweep: cases.segments(sweep, data, folder / f"rehearsed_{sweep}") for sweep in REHEARSED}
        write("plans", {"planned": plans, "entered": entered})
        write("bits", bits(folder, data))
        make_old(folder)


def write(name: str, content: object) -> None:
    """Write one golden file."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (GOLDEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def bits(folder: Path, data: list[str]) -> dict[str, object]:
    """Train the golden runs, the one that is to be interrupted too, and return their bits.

    bits_approximate_sqrt.json holds those of a processor on which torch.sqrt is not rounded as IEEE 754 says,
    with the interrupted run of the old folders resumed there.
    """
    root = folder / "whole"
    named = {"looped": cases.LOOPED, "control": cases.CONTROL, "other": cases.OTHER}
    named["interrupted"] = cases.INTERRUPTED
    records = cases.train_fixed([[*data, f"root={root}", *run] for run in named.values()])
    runs = [root / "single" / record["run_id"] for record in records]
    found = dict(zip(named, map(cases.results, runs), strict=True))
    return {"torch": torch.__version__.partition("+")[0], "runs": found}


def make_old(folder: Path) -> None:
    """Make the old folders from relative paths, so that they name no place, and leave out what passes."""
    home = Path.cwd()
    os.chdir(folder)
    try:
        shutil.rmtree(folder / "cache")
        data = ["root=runs", "cache=cache", "data=text", "path=corpus", *cases.DATA]
        interrupt([*data, *cases.INTERRUPTED])
        loopscale.launch([*data, *cases.GRID])
        while open_runs := set(loopscale.status([f"sweep={SWEEP}"])["status"]) - {"done"}:
            assert not any(state.startswith("failed") for state in open_runs), open_runs
            time.sleep(1)
        time.sleep(2)  # the worker looks once more
        sweep = folder / "runs" / SWEEP
        kept = max(sweep.glob("looped*mu3*"))
        for path in sweep.glob("*/checkpoints"):
            if path.parent != kept:
                shutil.rmtree(path)
        loopscale.collect([f"sweep={SWEEP}"])
        loopscale.fit([f"sweep={SWEEP}"])
        loopscale.export([f"checkpoint={kept}", "folder=export", "cache=cache"])
        older_tables(sweep, folder / "tables")
        shutil.rmtree(OLD, ignore_errors=True)
        for name in ("runs", "cache", "export", "tables"):
            shutil.copytree(folder / name, OLD / name, ignore=shutil.ignore_patterns(*PASSING))
    finally:
        os.chdir(home)
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "old"
        shutil.copytree(OLD, copied)
        write("old", cases.old_numbers(copied))


def interrupt(overrides: list[str]) -> None:
    """Start the run from the command line and stop it, as a scheduler would, when it is well on its way."""
    command = [sys.executable, "-m", "loopscale", "train", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not any(
            len(path.read_text().splitlines()) >= 6 for path in Path("runs").glob("*/*/metrics.jsonl")
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    (run,) = Path("runs").glob("single/*")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "submitted" and list((run / "checkpoints").glob("step_*"))


def older_tables(sweep: Path, folder: Path) -> None:
    """Write the runs table as earlier versions of the schema had it."""
    import pandas as pd

    runs = pd.read_csv(sweep / "runs.csv", keep_default_na=False)
    for version in (4, 3, 2, 1):
        runs = runs.drop(columns=ADDED[version + 1].split()).assign(schema_version=version)
        (folder / f"version_{version}").mkdir(parents=True)
        runs.to_csv(folder / f"version_{version}" / "runs.csv", index=False)
        shutil.copy(sweep / "depths.csv", folder / f"version_{version}")


if __name__ == "__main__":
    with contextlib.redirect_stderr(sys.stdout):
        main()
