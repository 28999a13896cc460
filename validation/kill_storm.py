"""Kill a run again and again, resume it, and compare it with one that was left alone.

python validation/kill_storm.py [--kills 50] [--minutes 7] [--root runs/validation/kill_storm]

Four runs are compared, eager and compiled, with one and two threads. Each is killed by SIGKILL at seeded
random moments (of its start, its steps, its checkpoints, its evaluation) and started again after each; then
the same with SIGTERM and SIGUSR2; then its newest checkpoint is truncated at seeded random offsets, in a
random file, and the run resumed from the one before. What must be equal: all weights and optimiser state bit
for bit, the record but for attempts and figures of time and memory, every line of the metrics but for those.
Ends after `--minutes`, to be called again until it says that all is done; the result is
docs/validation/kill_storm.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from harness.data.prepare import prepare
from harness.run.folder import RunFolder, create
from harness.run.length import solve
from harness.run.metrics import last_metrics, read_metrics
from harness.run.record import MEASURED
from harness.storage.files import write_json
from harness.training.checkpoint import checkpoint_folders

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "docs" / "validation" / "kill_storm.json"
STEPS = 300
OVERRIDES = [
    "data.packages=[rich,pygments]",
    "data.validation_packages=[click]",
    "data.vocabulary_size=512",
    "model=looped_40k",
    "model.mean_recurrence=3",
    "model.sequence_length=64",
    "training.batch_sequences=4",
    "training.log_every=1",
    "training.checkpoint_every_s=0.05",
    "evaluation.blocks=16",
    "evaluation.max_depth=4",
    f"steps={STEPS}",
]
CASES = {
    f"{name}, threads={threads}": [f"training.compile={compiled}", f"training.threads={threads}"]
    for name, compiled in (("eager", "false"), ("compiled", "true"))
    for threads in (1, 2)
}
PARTS = ("sigkill", "sigterm", "sigusr2", "truncation")
TRUNCATIONS = 20
# Children are forked from a server that has imported torch and done nothing with it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["harness.training.job", "torch._inductor.compile_fx"])


class TimeIsUp(Exception):
    """The slice of time is used; the next call goes on from here."""


def main() -> None:
    """Run what is missing of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs per case")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "runs" / "validation" / "kill_storm")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    result = json.loads(arguments.result.read_text()) if arguments.result.exists() else {}
    command = f"python validation/kill_storm.py --kills {arguments.kills} --seed {arguments.seed}"
    if result.get("command") != command:
        result = {"command": command, "seed": arguments.seed, "steps": STEPS, "cases": {}}
    try:
        for part in PARTS:
            for number, (case, overrides) in enumerate(CASES.items()):
                done = result["cases"].setdefault(case, {})
                if part in done:
                    continue
                study = Study(arguments.root / f"case_{number}", overrides, arguments.seed, until)
                done[part] = study.part(part, arguments.kills)
                arguments.result.parent.mkdir(parents=True, exist_ok=True)
                write_json(arguments.result, result)
                print(f"{case}, {part}: {done[part]}", flush=True)
    except TimeIsUp:
        print("time is up; call again to continue")
        sys.exit(75)
    print("all done")


class Study:
    """One case: the undisturbed run, and disturbed ones that must end like it."""

    def __init__(self, root: Path, overrides: list[str], seed: int, until: float) -> None:
        self._root, self._seed, self._until = root, seed, until
        self._overrides = [*OVERRIDES, *overrides, f"cache={root.parent / 'data'}"]

    def part(self, name: str, kills: int) -> dict[str, Any]:
        """Run one part of the study."""
        if name == "sigkill":
            return self.storm(kills)
        if name == "truncation":
            return self.truncated(TRUNCATIONS)
        return self.signalled(signal.Signals[name.upper()])

    def storm(self, kills: int) -> dict[str, Any]:
        """Kill a run `kills` times, mostly spread over its steps, and let it end."""
        draw = random.Random(f"{self._seed} sigkill")
        # A tenth in the start, a tenth around the end, the others anywhere in the steps.
        targets = sorted(draw.randrange(STEPS) for _ in range(kills - kills // 5))
        moments = [("step", target) for target in targets] + [("step", STEPS)] * (kills // 10)
        moments += [("start", 0)] * (kills - len(moments))
        draw.shuffle(moments)
        moments.sort(key=lambda moment: moment[1] if moment[0] == "step" else draw.randrange(STEPS))
        delays = [draw.random() for _ in moments]
        return self._disturbed("sigkill", list(zip(moments, delays, strict=True)), signal.SIGKILL)

    def signalled(self, number: signal.Signals) -> dict[str, Any]:
        """Ask a run to stop five times, anywhere in its steps."""
        draw = random.Random(f"{self._seed} {number.name}")
        moments = [(("step", target), draw.random()) for target in sorted(draw.sample(range(STEPS - 20), 5))]
        return self._disturbed(number.name.lower(), moments, number)

    def truncated(self, times: int) -> dict[str, Any]:
        """Truncate the newest of two checkpoints at random offsets and let the run end, each time anew."""
        reference, folder = self._reference(), self._run("truncation")
        draw, mark = random.Random(f"{self._seed} truncation"), folder.path.parent / "before"
        if not mark.exists():
            self._until_step(folder, STEPS // 2, signal.SIGTERM)
            assert len(checkpoint_folders(folder.checkpoints)) == 2, "two checkpoints are needed"
            folder.path.rename(mark)
        lost, offsets = [], []
        for trial in range(times):
            name = draw.choice(["model.safetensors", "optimizer.safetensors", "state.json"])
            share = draw.random()
            done = folder.path.parent / f"truncation_{trial}.json"
            if not done.exists():
                self._check_time()
                shutil.rmtree(folder.path, ignore_errors=True)
                shutil.copytree(mark, folder.path)
                torn = checkpoint_folders(folder.checkpoints)[-1] / name
                offset = int(share * torn.stat().st_size)
                os.truncate(torn, offset)
                self._finish(folder)
                write_json(done, {"file": name, "offset": offset, "different": different(reference, folder)})
            outcome = json.loads(done.read_text())
            offsets.append(f"{outcome['file']}:{outcome['offset']}")
            lost += [outcome] if outcome["different"] else []
        return {"truncations": times, "lost": len(lost), "different": lost, "at": offsets}

    def _disturbed(self, name: str, moments: list[Any], number: signal.Signals) -> dict[str, Any]:
        reference, folder = self._reference(), self._run(name)
        progress = folder.path.parent / f"{name}.json"
        landed = json.loads(progress.read_text())["landed"] if progress.exists() else []
        for (kind, target), delay in moments[len(landed) :]:
            self._check_time()
            if kind == "start":
                child = self._start(folder)
                time.sleep(2 * delay)
                os.kill(child.pid, number)
                child.join()
                landed.append("start")
            else:
                landed.append(self._until_step(folder, target, number, delay))
            write_json(progress, {"landed": landed})
        self._finish(folder)
        hits = [at for at in landed if at != "missed"]
        return {
            "signals": len(moments),
            "landed": len(hits),
            "attempts": folder.status().attempts,
            "lost": int(folder.status().state != "done"),
            "different": different(reference, folder),
        }

    def _until_step(
        self, folder: RunFolder, step: int, number: signal.Signals, delay: float = 0.0
    ) -> int | str:
        """Start the run, wait for a step (the end: all of them), signal it; gives the step it had reached."""
        child = self._start(folder)
        while last_metrics(folder.metrics).get("step", 0) < step and child.is_alive():
            time.sleep(0.0005)
        time.sleep(0.02 * delay if step < STEPS else 0.3 * delay)
        if not child.is_alive():
            return "missed"
        os.kill(child.pid, number)
        child.join()
        return int(last_metrics(folder.metrics).get("step", 0))

    def _finish(self, folder: RunFolder) -> None:
        while folder.status().state != "done":
            child = self._start(folder)
            child.join()
            if child.exitcode or folder.status().state == "failed":
                raise SystemExit(f"{folder.path}: {folder.status()}: {folder.status().message}")

    def _start(self, folder: RunFolder) -> BaseProcess:
        child = _CONTEXT.Process(target=_train, args=(folder.path, self._root.parent / "data"))
        child.start()
        return child

    def _run(self, name: str) -> RunFolder:
        study = loopscale.compose(self._overrides)
        run = solve(next(iter(study.runs.values())))
        dataset = prepare(run.data, self._root.parent / "data")
        more = {"data_digest": dataset.digest, "unique_tokens": dataset.unique_tokens}
        return create(self._root / name, run, **more)

    def _reference(self) -> RunFolder:
        folder = self._run("undisturbed")
        self._finish(folder)
        return folder

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise TimeIsUp


def _train(path: Path, cache: Path) -> None:
    warnings.simplefilter("ignore")  # a torn checkpoint is passed over with a warning
    sys.stderr = (path.parent / "stderr.txt").open("a")
    from harness.training.job import run_job

    run_job(path, cache)


def different(reference: RunFolder, folder: RunFolder, *apart: str) -> list[str]:
    """Name what is not equal in two finished runs of one configuration, columns `apart` from it."""
    wrong = []
    ours, theirs = (checkpoint_folders(run.checkpoints)[-1] for run in (reference, folder))
    for name in ("model.safetensors", "optimizer.safetensors"):
        if (ours / name).read_bytes() != (theirs / name).read_bytes():
            wrong.append(name)
    # The checkout becomes dirty when this script writes its first result.
    volatile = {*MEASURED, "attempts", "sweep", "code_version", *apart}
    records = [{k: v for k, v in run.record().items() if k not in volatile} for run in (reference, folder)]
    lines = [
        [{k: v for k, v in line.items() if k not in volatile} for line in read_metrics(run.metrics)]
        for run in (reference, folder)
    ]
    curves = [run.depth_curve.read_text() for run in (reference, folder)]
    for name, pair in {"record": records, "metrics": lines, "depth_curve": curves}.items():
        if pair[0] != pair[1]:
            wrong.append(name)
    return wrong


if __name__ == "__main__":
    main()
