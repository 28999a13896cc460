"""Do to sweeps on two real SLURM clusters what clusters, people and file systems do, and hold the results.

python validation/chaos.py [--minutes 600] [--seed 0] [--root /tmp/loopscale-chaos-runs]

Two sites of its own are started (`tests/slurm/cluster.py`, at SITE_ROOT, by default /tmp/loopscale-chaos):
a generous one, and a strict one that forgets, limits and refuses what sites may. On each, every event of
`tests/slurm/chaos_events.py` happens in seeded order to sweeps of two runs, some to each sweep, then a time
limit, a job without memory and a full disk to a sweep each. What is held:

lost: a run that is not done in the end, lacks a step, or is absent from the collected table;
doubled: a step recorded twice, a run collected twice, two processes that train a run at the same time, or a
    start that trains again more than MOST_AGAIN steps (two checkpoint intervals, on a busy machine);
bits: weights, optimiser state, record, metrics and depth curve of every run, as in an undisturbed sweep;
messages: what the commands said, asserted against what was done.

What is done is kept under `--root`, so that it continues; the result is docs/validation/chaos.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from harness.storage.files import write_json
from tests.conftest import write_corpus
from tests.slurm.chaos_events import BOTH, GENEROUS
from tests.slurm.chaos_rounds import HALVING, ROUNDS
from tests.slurm.cluster import PACKAGES, down, up
from tests.slurm.conftest import Sweep
from tests.slurm.scene import Scene
from tests.slurm.sites import Site
from tests.waiting import wait_for
from validation.children import in_children

REPOSITORY = Path(__file__).resolve().parents[1]
# Sites of its own, whatever others run on this machine.
ENVIRONMENT = {"SITE_ROOT": "/tmp/loopscale-chaos", "SITE_PORT": "48300", "OMP_NUM_THREADS": "1"}
STEPS = 160
EVENTS = 4  # on each sweep
MOST_AGAIN = 12
SWEEP = [
    "sweep.mean_recurrences=[2]",
    "sweep.control=none",
    "sweep.seeds=[0,1]",
    f"sweep.tokens=[{STEPS * 128}]",
    "retry.lost.retries=1000",
    "retry.node_failure.retries=1000",
]
LOCAL = ["cluster=local", "cluster.parallel_runs=1"]
HALVED = "training.micro_batch=2"


def main() -> None:
    """Do what is missing on both sites at once; exit code 75 asks to be called again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("/tmp/loopscale-chaos-runs"))
    parser.add_argument("--result", type=Path, default=REPOSITORY / "docs" / "validation" / "chaos.json")
    parser.add_argument("--only", default="", help="names of events, for one try of each")
    arguments = parser.parse_args()
    missing = [program for program in PACKAGES if shutil.which(program) is None]
    if missing and os.geteuid() != 0:
        sys.exit(f"{missing[0]} is not here: as root on Debian this script installs SLURM")
    arguments.root.mkdir(parents=True, exist_ok=True)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    first = Site.from_environment()
    sites = [first, first.second()]
    for site in sites:
        up(site)
    references(arguments.root)
    until = time.monotonic() + 60 * arguments.minutes
    studies = [Study(site, arguments.root, arguments.seed, until, arguments.only) for site in sites]
    in_children([study.work for study in studies])
    rounds = [json.loads(path.read_text()) for path in sorted(arguments.root.glob("round-*.json"))]
    if any(study.missing([*study.events, *study.rounds]) for study in studies):
        sys.exit(75)
    result = summarise(rounds, f"python validation/chaos.py --seed {arguments.seed}", arguments.seed)
    write_json(arguments.result, result)
    for site in sites:
        down(site)
        shutil.rmtree(site.root, ignore_errors=True)
    print(json.dumps(result["summary"], indent=1))
    summary = result["summary"]
    sys.exit(int(any(summary[name] for name in ("lost", "doubled", "bits_differ", "messages_wrong"))))


def references(root: Path) -> None:
    """Train the sweep that nothing disturbs, at both micro-batches, one run after the other."""
    corpus = root / "corpus"
    if not corpus.exists():
        write_corpus(_made(root / ".corpus")).rename(corpus)
    for name, more in (("calm", []), ("calm-halved", [HALVED])):
        sweep = made_sweep(
            root / name, root, "undisturbed", "cluster=local", "cluster.parallel_runs=1", *more
        )
        if not (sweep.folder.exists() and sweep.is_done()):
            sweep.launch()
            wait_for(sweep.is_done, 600, lambda sweep=sweep: f"for {sweep.states()}")


def made_sweep(root: Path, base: Path, name: str, *more: str) -> Sweep:
    return Sweep(_made(root), base / "corpus", base / "cache", name, *SWEEP, *more)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Study:
    """What happens on one site."""

    def __init__(self, site: Site, root: Path, seed: int, until: float, only: str) -> None:
        self.site, self.root, self.seed, self.until = site, root, seed, until
        self.name = "strict" if site.strict else "generous"
        events = [*BOTH, *([] if site.strict else GENEROUS)]
        random.Random(f"{seed} {self.name}").shuffle(events)
        wanted = only.split(",") if only else []
        self.events = [event for event in events if not wanted or event.__name__ in wanted]
        self.rounds = [each for each in ROUNDS if not wanted or each.__name__ in wanted]

    def done(self) -> list[dict[str, Any]]:
        paths = sorted(self.root.glob(f"round-{self.name}-*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def missing(self, events: list[Any]) -> list[Any]:
        """Return those of the events that have not happened yet."""
        happened = {event["kind"] for each in self.done() for event in each["events"]}
        return [event for event in events if event.__name__ not in happened]

    def work(self) -> None:
        """Do rounds until all has happened or the time is up; a round is recorded when it is judged."""
        os.environ["SLURM_CONF"] = str(self.site.conf)
        wait_for(lambda: subprocess.run(["sinfo"], capture_output=True).returncode == 0, 60)
        while time.monotonic() < self.until:
            events, rounds = self.missing(self.events), self.missing(self.rounds)
            if not events and not rounds:
                return
            number = max((each["round"] + 1 for each in self.done()), default=0)
            draw = random.Random(f"{self.seed} {self.name} {number}")
            began = time.monotonic()
            folder = self.root / f"{self.name}-{number:02}"
            shutil.rmtree(folder, ignore_errors=True)
            with self.sweep_of(folder, f"{self.name}-{number:02}", draw) as scene:
                rows = self.storm(scene, events) if events else [self.happen(scene, rounds[0], 0)]
                judged = self.finish(scene, halved=not events and rounds[0] is HALVING)
            judged |= {"site": self.name, "round": number, "seconds": round(time.monotonic() - began)}
            write_json(self.root / f"round-{self.name}-{number:02}.json", judged | {"events": rows})
            print(json.dumps(judged), flush=True)

    @contextlib.contextmanager
    def sweep_of(self, folder: Path, name: str, draw: random.Random) -> Iterator[Scene]:
        """Make a sweep of its own; half of those on the strict site ask to be queued again."""
        requeue = ["cluster.requeue=true"] if self.site.strict and draw.random() < 0.5 else []
        made, trace = made_sweep(folder / "runs", self.root, name, *requeue), _made(folder / "trace")
        scene = Scene(made, self.site, trace, STEPS, draw)
        try:
            yield scene
        finally:
            scene.clear()

    def storm(self, scene: Scene, events: list[Any]) -> list[dict[str, Any]]:
        """Let some events happen to a sweep, as long as it has steps before it."""
        rows: list[dict[str, Any]] = []
        scene.launch()
        for event in events[:EVENTS]:
            victim = scene.victim()
            if victim is None:
                break
            rows.append(self.happen(scene, event, victim))
        return rows

    def happen(self, scene: Scene, event: Any, victim: int) -> dict[str, Any]:
        scene.begin()
        began, step = time.monotonic(), scene.step(victim) if scene.made.folder.exists() else 0
        try:
            event(scene, victim)
        except BaseException as error:  # of pytest's waiting too; what has not come is not true
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            scene.wrong.append(f"{type(error).__name__}: {error}"[:500])
        row = {
            "kind": event.__name__,
            "run": victim,
            "step": step,
            "did": self.anywhere("; ".join(scene.did)),
            "said": [self.anywhere(text) for text in scene.said],
            "true": not scene.wrong,
            "wrong": scene.wrong,
            "seconds": round(time.monotonic() - began, 1),
        }
        print(json.dumps({"site": self.name} | row, ensure_ascii=False), flush=True)
        return row

    def anywhere(self, text: str) -> str:
        """Return a text without the paths of this machine."""
        return text.replace(str(self.root), "ROOT").replace(sys.executable, "python")

    def finish(self, scene: Scene, *, halved: bool) -> dict[str, Any]:
        """Bring the sweep to its end and judge it."""
        made = scene.made
        scene.begin()
        until = time.monotonic() + 600
        while not made.is_done() and time.monotonic() < until:
            if not made.queue():
                scene.launch("retry_failed=true")
            time.sleep(1)
        calm = made_sweep(self.root / ("calm-halved" if halved else "calm"), self.root, "undisturbed")
        runs, _ = loopscale.collect([f"root={made.root}", f"sweep={made.name}"])
        ids = Counter(runs["run_id"])
        trace, pairs = scene.trace, zip(calm.runs(), made.runs(), strict=True)
        return {"runs": [judged(*pair, trace, ids, 1 + halved) for pair in pairs], "wrong": scene.wrong}


def judged(
    calm: RunFolder, run: RunFolder, trace: Path, ids: Mapping[str, int], micro_batches: int
) -> dict[str, Any]:
    """Return what became of a run, compared with the undisturbed one.

    `trace` holds what each process trained and when, `ids` how often a run was collected.
    """
    from validation.kill_storm import different  # imports torch

    apart = ["micro_batch_changed"] if micro_batches > 1 else []
    status = run.status()
    steps = [line["step"] for line in read_metrics(run.metrics)]
    lost = status.state != "done" or sorted(set(steps)) != list(range(1, STEPS + 1)) or not ids[run.run_id]
    processes = sorted(filter(None, map(trained, trace.glob(f"{run.run_id}.*"))))
    at_once = sum(a[-1][0] > b[0][0] for a, b in itertools.pairwise(processes))
    seen: set[str] = set()
    again = []
    for process in processes:
        again.append(len({batch for _, batch in process} & seen) / micro_batches)
        seen |= {batch for _, batch in process}
    twice = len(steps) != len(set(steps)) or ids[run.run_id] > 1
    return {
        "run_id": run.run_id,
        "attempts": status.attempts,
        "failures": status.failures,
        "lost": bool(lost),
        "doubled": bool(twice or at_once or max(again) > MOST_AGAIN),
        "trained_again": sum(again),
        "most_again": max(again),
        "different": ["not done"] if lost else different(calm, run, *apart),
    }


def trained(path: Path) -> list[tuple[float, str]]:
    """Return when a process trained which micro-batch, in order; a line that was cut off is left out."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(float(line[0]), line[1]) for line in lines if len(line) == 2]


def summarise(rounds: list[dict[str, Any]], command: str, seed: int) -> dict[str, Any]:
    """Return the table of events and what was held."""
    runs = [run for each in rounds for run in each["runs"]]
    events = [
        {"site": each["site"], "sweep": each["round"], **event} for each in rounds for event in each["events"]
    ]
    wrong = sum(not event["true"] for event in events) + sum(bool(each["wrong"]) for each in rounds)
    survived = [
        event
        for each in rounds
        for event in each["events"]
        if not any(run["lost"] or run["doubled"] or run["different"] for run in each["runs"])
    ]
    return {
        "command": command,
        "seed": seed,
        "summary": {
            "events": len(events),
            "kinds": len({event["kind"] for event in events}),
            "survived": len(survived),
            "sweeps": len(rounds),
            "runs": len(runs),
            "attempts": sum(run["attempts"] for run in runs),
            "lost": sum(run["lost"] for run in runs),
            "doubled": sum(run["doubled"] for run in runs),
            "bits_differ": sum(bool(run["different"]) for run in runs),
            "messages": sum(len(event["said"]) for event in events),
            "messages_wrong": wrong,
            "steps_needed": STEPS * len(runs),
            "steps_trained_again": sum(run["trained_again"] for run in runs),
            "most_again_in_a_start": max(run["most_again"] for run in runs),
        },
        "events": events,
        "sweeps": [{key: value for key, value in each.items() if key != "events"} for each in rounds],
    }


if __name__ == "__main__":
    main()
