"""What evaluations leave in a run's folder, when several write there at once."""

from __future__ import annotations

import dataclasses

from harness.evaluation.scores import Score, read_scores, save_scores
from harness.run.folder import RunFolder
from tests.harness.processes import CONTEXT, join
from tests.workers import in_processes

TURNS = 8


def score(task, depth, tasks=""):
    names = ("centred", "chance_corrected", "se", "chance_corrected_se", "log_prob_per_byte", "log_prob_se")
    return Score(task=task, depth=depth, tasks=tasks, items=1, seeds=1, **dict.fromkeys(names, 0.25))


def kept(path, member, ready):
    """Enter one score after the other, beside the other members."""
    run = RunFolder(path)
    ready.wait()
    for turn in range(TURNS):
        save_scores(run, [score(f"task {member}", turn + 1)])
    save_scores(run, [score(("core", "core_extended")[member % 2], 2, "5 of 22 tasks")])


@in_processes
def test_evaluations_at_the_same_time_lose_nothing(make):
    run, _ = make()
    run.set_status(dataclasses.replace(run.status(), state="done"))
    ready = CONTEXT.Barrier(4)
    members = [CONTEXT.Process(target=kept, args=(run.path, member, ready)) for member in range(4)]
    for member in members:
        member.start()
    assert join(members) == [0] * 4
    rows = [(row["task"], row["depth"]) for row in read_scores(run)]
    expected = {(f"task {member}", turn + 1) for member in range(4) for turn in range(TURNS)}
    assert len(rows) == len(set(rows)) and set(rows) == expected | {("core", 2), ("core_extended", 2)}
    record = run.record()
    assert record["core"] == record["core_extended"] == 0.25 and record["core_tasks"] == 5
    assert not list((run.path / "evaluation").glob(".*"))  # no temporary file is left
