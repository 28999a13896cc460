"""One run over several nodes: the same losses as in one process. Collected where runs can have ranks."""

from __future__ import annotations

import pytest

from sweeps.state.ended_jobs import attempts_of

from .conftest import EVENT


@pytest.mark.parametrize("starter", ["srun", "torchrun"])
def test_two_nodes_of_two_tasks_equal_one_process(sweep, calm, starter):
    shape = f"{{nodes: 2, tasks_per_node: 2, ranks: {starter}}}"
    made = sweep(f"ranks_{starter}", *EVENT, "sweep.seeds=[0]", f"cluster.per_scale={{looped_40k: {shape}}}")
    made.launch()
    made.finish(again=False)
    (run,) = made.runs()
    assert made.losses()[run.run_id] == pytest.approx(calm[run.run_id], rel=1e-5)
    assert run.status().attempts == 1 and len(attempts_of(run)) == 1
