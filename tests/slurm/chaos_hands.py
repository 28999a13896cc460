"""What people and file systems do to a sweep at work, as `chaos_events`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from sweeps.backends.job_array import read_array
from sweeps.state.ledger import read_ledger
from tests.waiting import wait_for

from .conftest import slurm
from .scene import Scene, output_of

# People


def start_launch(s: Scene, **environment: str) -> tuple[subprocess.Popen, Path, int]:
    """Start a launch in a process of its own; return it, its log and where the log begins."""
    log = s.made.root.parent / f"{s.made.name}.log"
    start = log.stat().st_size if log.exists() else 0
    return s.made.launch_process(**environment), log, start


def launch_interrupted(s: Scene, n: int) -> None:
    interrupted_by(s, signal.SIGINT)


def launch_killed(s: Scene, n: int) -> None:
    interrupted_by(s, signal.SIGKILL)


def interrupted_by(s: Scene, number: signal.Signals) -> None:
    s.stop()
    delay = 0.5 + 4 * s.draw.random()
    launching, log, start = start_launch(s)
    time.sleep(delay)
    launching.send_signal(number)
    text = output_of(launching, log, start)
    s.do(f"{number.name} to a launch after {delay:.1f} s: exit code {launching.returncode}")
    if number == signal.SIGINT:
        true = launching.returncode == 0 or "run the same command again" in text
        s.says(text[-200:], true and "Traceback" not in text, "that the same command continues")
    s.launch()


def launch_killed_after_sbatch(s: Scene, n: int) -> None:
    s.stop()
    script = s.made.root.parent / "bin" / "sbatch"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" > /dev/null\nkill -9 $PPID\n')
    script.chmod(0o755)
    batches = len(s.made.batches())
    launching, log, start = start_launch(s, PATH=f"{script.parent}:{os.environ['PATH']}")
    output_of(launching, log, start)
    s.do("SIGKILL to a launch between sbatch and its answer")
    text = s.launch()
    s.says(text.splitlines()[0], len(s.made.batches()) == batches + 1, "that nothing more is submitted")


def two_launches(s: Scene, n: int) -> None:
    s.stop()
    before = len(s.made.batches())
    starts = [start_launch(s) for _ in range(2)]
    texts = [output_of(*each) for each in starts]
    s.do("two launches at once")
    codes = [each[0].returncode for each in starts]
    made = len(s.made.batches()) - before
    s.says(f"exit codes {codes}, {texts[-1].count('submitted ')} submissions", codes == [0, 0], "both done")
    s.says(f"{made} arrays", made == 1, "one array")
    s.launch()


def folder_renamed(s: Scene, n: int) -> None:
    before = s.made.root
    new = before.with_name(f"{before.name.partition('-')[0]}-{time.monotonic_ns()}")
    s.do("the sweep's folder renamed under its jobs")
    before.rename(new)
    s.made.root, s.made.folder = new, new / s.made.name
    s.made.overrides[0] = f"root={new}"
    s.made.wait_until_idle(120)
    logs = "\n".join(path.read_text() for path in s.made.folder.glob("jobs/*/*_log.out"))
    gone = [line for line in logs.splitlines() if "is gone, it was renamed or deleted" in line]
    s.says(gone[-1] if gone else "nothing", gone, "that the folder is gone")
    s.says(f"{before} exists: {before.exists()}", not before.exists(), "nothing is made anew")


def other_kind_of_cluster(s: Scene, n: int) -> None:
    text = s.ask("launch", "cluster=local")
    s.do("launch cluster=local while jobs run")
    s.says(text, "are queued or running" in text or "cancel first" in text, "that jobs are live")
    kind = read_ledger(s.made.folder).cluster.kind
    s.says(f"the sweep is on {kind}", kind == "slurm", "slurm still")


def queue_held(s: Scene, n: int) -> None:
    s.stop()
    held = s.launch("cluster.resources.options={hold: true}", "cluster.resources.time_min=9")
    s.do("launched on hold with another time limit, launched again, replaced by resubmit=true")
    s.says(held, "JobHeldUser" in s.row(n)["message"], "that it is held")
    text = s.launch()
    s.says(text, "time_min=9" in text and "resubmit=true replaces" in text, "that the old limit stands")
    s.launch("resubmit=true")
    limits = slurm("squeue", "-h", "-r", "-n", names(s), "-o", "%l").split()
    s.says(f"limits in the queue: {limits}", "9:00" not in limits, "no 9:00")


def names(s: Scene) -> str:
    return ",".join(read_array(path.parent).name for path in s.made.batches())


def program_missing(s: Scene, n: int) -> None:
    s.stop()
    s.launch("cluster.setup=['echo cuda: no such module >&2','exit 7']")
    s.made.wait_until_idle(120)
    wait_for(lambda: "no such module" in s.row(n)["message"], 30, lambda: s.row(n))
    s.do("jobs whose setup ends with an error before Python")
    message = s.row(n)["message"]
    s.says(message, "its job ended before it began on loop" in message, "node and log")


def program_broken(s: Scene, n: int) -> None:
    s.stop()
    s.launch(s.fault("error"))
    s.made.wait_until_idle(120)
    s.do("jobs whose program raises, then launch retry_failed=true with the right one")
    row = s.row(n)
    said = f"{row['status']}: {row['message']}"
    s.says(said, row["status"] == "failed:code_error" and "is broken" in row["message"], "the error")
    text = s.launch()
    s.says(text, "retry" in text, "that retry starts it again")
    s.launch("retry_failed=true")


# Files


def torn(s: Scene, path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, offset := s.draw.randrange(size))
    s.do(f"{path.name} cut to {offset} of {size} bytes")


def torn_status(s: Scene, n: int) -> None:
    torn_file_of_a_run(s, n, "status.json")


def torn_record(s: Scene, n: int) -> None:
    torn_file_of_a_run(s, n, "record.json")


def torn_file_of_a_run(s: Scene, n: int, name: str) -> None:
    """Tear a file; what the commands say names it, the other runs go on, and what they advise helps."""
    s.stop()
    path = s.made.run(n).path / name
    torn(s, path)
    row, others = s.row(n), [k for k in range(len(s.made.runs())) if k != n]
    said = f"{row['status']}: {row['message']}"
    s.says(said, "unreadable" in said and name in row["message"], f"that {name} is unreadable")
    open_others = [k for k in others if s.made.run(k).status().state != "done"]
    text = s.launch()
    live = s.live()
    others_live = all(s.made.run(k).run_id in live or s.made.run(k).is_held() for k in open_others)
    s.says(text, name in text and others_live, f"{name}, and that the others go on")
    s.do("deleted, as said")
    path.unlink()
    path.with_name("status.json").unlink(missing_ok=True)


def torn_ledger(s: Scene, n: int) -> None:
    path = s.made.folder / "sweep.json"
    torn(s, path)
    text = s.ask("status")
    s.says(text, "sweep.json is damaged" in text, "that sweep.json is damaged")
    s.do("deleted")
    path.unlink()
    lost_ledger(s, n)


def lost_ledger(s: Scene, n: int) -> None:
    s.do("without sweep.json")
    (s.made.folder / "sweep.json").unlink(missing_ok=True)
    text = s.ask("status")
    s.says(text, "loopscale launch " in text, "that launch writes it anew")
    s.launch()
    known, there = len(s.made.runs()), len(list(s.made.folder.glob("*/status.json")))
    s.says(f"{known} runs in the new one", known == there, f"{there}")


def lost_answer(s: Scene, n: int) -> None:
    newest = max(s.made.folder.glob("jobs/*/job.json"), key=lambda path: path.stat().st_mtime)
    answer = newest.read_text()
    torn(s, newest)
    text = s.launch()
    s.says(text, newest.read_text() == answer and "damaged" not in text, "what the scheduler answers again")


def torn_metrics(s: Scene, n: int) -> None:
    s.stop()
    path = s.made.run(n).metrics
    last = path.read_bytes().splitlines()[-1]
    with path.open("ab") as file:
        file.write(last[: s.draw.randrange(1, len(last))])
    s.do("a line that was cut off at the end of metrics.jsonl, as a kill while it is written leaves it")
    s.says(s.row(n)["status"], "unreadable" not in s.row(n)["status"], "its state")


def torn_checkpoint(s: Scene, n: int) -> None:
    s.stop()
    folder = sorted(s.made.run(n).checkpoints.glob("step_*"))[-1]
    name = s.draw.choice(["model.safetensors", "optimizer.safetensors", "state.json"])
    torn(s, folder / name)
    attempts = s.made.run(n).status().attempts
    s.launch()
    s.wait_for_attempt(n, attempts)
    log = s.made.run(n).path / "logs" / "output.txt"
    wait_for(lambda: folder.name in log.read_text(), 90)
    said = next((line for line in log.read_text().splitlines() if folder.name in line), "nothing")
    s.says(
        said, "is corrupt" in said and "the one before it is used" in said, f"that {folder.name} is corrupt"
    )


def torn_attempts(s: Scene, n: int) -> None:
    path = s.made.run(n).path / "logs" / "attempts.jsonl"
    s.stop()
    os.truncate(path, path.stat().st_size - s.draw.randrange(2, 40))
    s.do("the last line of attempts.jsonl cut")
    text = s.ask("status", f"run={s.made.run(n).run_id}")
    s.says(text[-200:], "to repeat it by hand" in text, "everything about the run")


def torn_tables(s: Scene, n: int) -> None:
    s.ask("collect")
    torn(s, s.made.folder / "runs.parquet")
    text = s.ask("collect")
    s.says(text, f"runs.parquet ({len(s.made.runs())} rows)" in text, "all rows")
