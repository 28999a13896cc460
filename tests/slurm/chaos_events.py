"""What clusters, people and file systems do to a sweep at work: one function for each kind of event.

An event is done to run `n` of the scene's sweep. It notes what it did and what the commands say, and leaves
the sweep such that launching it again brings it on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

from sweeps.backends.job_array import read_array
from sweeps.state.ended_jobs import attempts_of
from tests.waiting import wait_for

from .chaos_hands import (
    folder_renamed,
    launch_interrupted,
    launch_killed,
    launch_killed_after_sbatch,
    lost_answer,
    lost_ledger,
    other_kind_of_cluster,
    program_broken,
    program_missing,
    queue_held,
    start_launch,
    torn_attempts,
    torn_checkpoint,
    torn_ledger,
    torn_metrics,
    torn_record,
    torn_status,
    torn_tables,
    two_launches,
)
from .cluster import listens, start_accounting, step_daemons
from .conftest import ROOT, slurm
from .scene import Scene, kill, output_of, summary

Event = Callable[[Scene, int], None]


def failures(s: Scene, n: int) -> dict[str, int]:
    return s.made.run(n).status().failures


def counted(s: Scene, n: int, before: dict[str, int], *classes: str) -> None:
    """Hold the failures that the status of a run counts against those it had `before`: one more of these."""
    now = failures(s, n)
    more = {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name, 0)}
    wanted = [{name: 1} for name in classes] or [{}]
    s.says(f"failures counted: {more}", more in wanted, f"one of {wanted}")


# Processes and jobs


def process_killed(s: Scene, n: int) -> None:
    attempts, before = s.made.run(n).status().attempts, failures(s, n)
    s.do("SIGKILL to the run's process")
    kill(s.pids(n)[1])
    s.wait_for_attempt(n, attempts)
    counted(s, n, before, "lost")


def job_killed(s: Scene, n: int) -> None:
    before = failures(s, n)
    s.do("SIGKILL to the job's process and the run's")
    kill(*s.pids(n))
    s.gone(n)
    text = s.ask("status")
    s.says(s.row(n)["status"], s.row(n)["status"] == "lost", "lost")
    s.says(text.splitlines()[-1], "Traceback" not in text, "no traceback")
    s.launch()
    counted(s, n, before, "lost")


def second_copy(s: Scene, n: int) -> None:
    run = s.made.run(n)
    attempts = run.status().attempts
    batch = [p.parent for p in s.made.batches() if run.run_id in read_array(p.parent).runs][-1]
    index = next(i for i, runs in enumerate(read_array(batch).elements) if run.run_id in runs)
    s.do("its job's command started again by hand")
    command = [sys.executable, "-m", "sweeps.workers.array_task", str(batch), str(index)]
    done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = done.communicate(timeout=120)
    s.says(
        f"exit code {done.returncode}, {run.status().attempts - attempts} more attempts {out[-200:]}",
        run.status().attempts == attempts and "Traceback" not in out,
        "no further attempt",
    )


def element_cancelled(s: Scene, n: int) -> None:
    element = s.made.element(n)
    s.do(f"scancel {element}")
    slurm("scancel", element)
    s.gone(n)
    wait_for(lambda: element not in slurm("squeue", "-h", "-r", "-o", "%F_%K").split(), 60)
    row = s.row(n)
    said = f"{row['status']}: {row['message']}"
    s.says(said, row["status"] == "lost" or "cancelled; launch continues it" in row["message"], "cancelled")


def sweep_cancelled(s: Scene, n: int) -> None:
    live = s.live()
    open_runs = {run.run_id for run in s.made.runs() if run.status().state != "done"}
    text = s.ask("cancel")
    s.do(f"loopscale cancel, with {len(set(live) & open_runs)} runs in the queue")
    named = {run for run in live if run in text}
    s.says(text, named == set(live) & open_runs, f"the jobs of {sorted(set(live) & open_runs)}")
    s.made.wait_until_idle(120)
    text = s.ask("status")
    s.says(summary(text), "loopscale launch " in text, "that launch continues it")


def run_cancelled(s: Scene, n: int) -> None:
    run_id = s.made.run(n).run_id
    text = s.ask("cancel", f"run={run_id}")
    s.do(f"loopscale cancel run={run_id}")
    s.says(text, text.count("cancelled ") == 1 and run_id in text, "this run alone")
    s.gone(n)


def signalled(s: Scene, n: int) -> None:
    attempts, before = s.made.run(n).status().attempts, failures(s, n)
    s.do("scancel --signal=USR2, as before a time limit")
    slurm("scancel", "--signal=USR2", s.made.element(n))
    wait_for(lambda: failures(s, n) != before or not s.made.run(n).is_held(), 60)
    wait_for(lambda: failures(s, n) != before, 60)
    message = s.made.run(n).status().message
    requeued = "queued again" in message
    s.says(message, requeued or "launch continues it" in message, "what follows")
    s.wait_for_attempt(n, attempts) if requeued else s.gone(n)
    again = s.made.run(n).status().attempts > attempts
    s.says(f"attempts: {s.made.run(n).status().attempts}", again == requeued, "as announced")
    counted(s, n, before, "preempted", "timeout")


def requeued(s: Scene, n: int) -> None:
    attempts, before, batches = s.made.run(n).status().attempts, failures(s, n), len(s.made.batches())
    s.do("scontrol requeue")
    slurm("scontrol", "requeue", s.made.element(n))
    s.wait_for_attempt(n, attempts)
    counted(s, n, before, "preempted", "restarted")
    s.says(f"{len(s.made.batches()) - batches} arrays more", len(s.made.batches()) == batches, "none")


def requeued_and_held(s: Scene, n: int) -> None:
    element, attempts = s.made.element(n), s.made.run(n).status().attempts
    s.do("scontrol requeuehold, a launch, and scontrol release")
    slurm("scontrol", "requeuehold", element)
    wait_for(lambda: not s.made.run(n).is_held(), 60)
    wait_for(lambda: "held" in s.row(n)["message"], 60, lambda: s.row(n))
    s.says(s.row(n)["message"], "cancelled" not in s.row(n)["message"], "held")
    batches = len(s.made.batches())
    s.says(s.launch(), len(s.made.batches()) == batches, "that nothing more is submitted")
    slurm("scontrol", "release", element)
    s.wait_for_attempt(n, attempts)


def suspended(s: Scene, n: int) -> None:
    element = s.made.element(n)
    s.do("scontrol suspend and resume")
    slurm("scontrol", "suspend", element)
    s.says(s.row(n)["status"], s.row(n)["status"] == "suspended", "suspended")
    slurm("scontrol", "resume", element)


def preempted(s: Scene, n: int) -> None:
    attempts, before = s.made.run(n).status().attempts, failures(s, n)
    node = attempts_of(s.made.run(n))[-1]["node"]
    s.do(f"a job of a better partition on all of {node}")
    slurm("sbatch", "-p", "urgent", "-w", node, "-c8", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: not s.made.run(n).is_held(), 60)
    s.wait_for_attempt(n, attempts, 180)
    if s.made.run(n).status().attempts == attempts:
        s.launch()
        s.wait_for_attempt(n, attempts)
    counted(s, n, before, "preempted")


# Nodes, controller, accounting


def node_lost(s: Scene, n: int) -> None:
    attempts, before = s.made.run(n).status().attempts, failures(s, n)
    node = attempts_of(s.made.run(n))[-1]["node"]
    s.do(f"SIGKILL to slurmd and all steps of {node}")
    s.daemons.stop(f"slurmd.{node}", number=signal.SIGKILL)
    steps = step_daemons(s.site, node)
    kill(*steps)
    kill(*s.pids(n))
    s.wait_for_attempt(n, attempts)
    s.daemons.start_node(node)
    if s.made.run(n).status().attempts == attempts:
        s.launch()
    wait_for(lambda: failures(s, n) != before, 60)
    counted(s, n, before, "node_failure", "restarted", "lost")
    wait_for(lambda: in_use(node), 60)


def node_set_down(s: Scene, n: int) -> None:
    node = attempts_of(s.made.run(n))[-1]["node"]
    s.do(f"scontrol update nodename={node} state=down, and it returns")
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
    wait_for(lambda: not s.made.run(n).is_held(), 60)
    wait_for(lambda: in_use(node), 60)
    text = s.ask("status")
    s.says(summary(text), "Traceback" not in text, "no traceback")


def node_cut_off(s: Scene, n: int) -> None:
    node = attempts_of(s.made.run(n))[-1]["node"]
    s.do(f"SIGKILL to slurmd of {node} alone, whose steps go on, and started again")
    s.daemons.stop(f"slurmd.{node}", number=signal.SIGKILL)
    time.sleep(s.draw.choice([2, 30]))
    text = s.ask("status")
    s.daemons.start_node(node)
    s.says(summary(text), "Traceback" not in text, "no traceback")
    wait_for(lambda: in_use(node), 60)


def in_use(node: str) -> bool:
    """Return True if a node takes jobs; one that is drained or down is told to."""
    state = slurm("sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T")
    if "drain" in state or "down" in state:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
    return not any(word in state for word in ("drain", "down", "unk"))


def controller_restarted(s: Scene, n: int) -> None:
    attempts, number = s.made.run(n).status().attempts, s.draw.choice([signal.SIGTERM, signal.SIGKILL])
    time.sleep(6)  # it writes what it knows every five seconds
    s.do(f"slurmctld ended by {signal.Signals(number).name} and started again")
    s.daemons.stop("slurmctld", number=number)
    text = s.ask("status")
    s.says(text.splitlines()[-1], "scheduler was not asked" in text, "that it does not answer")
    s.daemons.start_controller()
    same = s.made.run(n).status().attempts == attempts
    s.says(f"attempts: {s.made.run(n).status().attempts}", same, f"{attempts}")


def controller_away_at_launch(s: Scene, n: int) -> None:
    s.stop()
    s.daemons.stop("slurmctld")
    text = s.ask("launch", "cluster.patience_s=1")
    s.says(text, "loopscale: " in text, "that SLURM does not answer")
    launching, log, start = start_launch(s)
    time.sleep(12)
    s.daemons.start_controller()
    text = output_of(launching, log, start)
    s.do("slurmctld away for 12 s of a launch")
    s.says(text.splitlines()[-1] if text else "", launching.returncode == 0, "exit code 0")


def accounting_away(s: Scene, n: int) -> None:
    s.do("slurmdbd stopped during status and launch")
    s.daemons.stop("slurmdbd")
    text = s.ask("status")
    s.says(summary(text), "running" in text and "Traceback" not in text, "that it runs")
    s.launch()
    start_accounting(s.site, s.daemons)
    wait_for(lambda: listens(s.site.port + 1), 30)


BOTH: list[Event] = [
    process_killed, job_killed, second_copy, element_cancelled, sweep_cancelled, run_cancelled, signalled,
    suspended, preempted, node_lost, node_set_down, node_cut_off, controller_restarted,
    controller_away_at_launch, launch_interrupted, launch_killed, launch_killed_after_sbatch, two_launches,
    folder_renamed, other_kind_of_cluster, queue_held, program_missing, program_broken, torn_status,
    torn_record, torn_ledger, lost_ledger, lost_answer, torn_metrics, torn_checkpoint, torn_attempts,
    torn_tables,
]  # fmt: skip
GENEROUS: list[Event] = [requeued, requeued_and_held, accounting_away]  # needs requeueing, or accounting
