"""Queued jobs that ask for what the cluster profile said when they were submitted, and no longer says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from sweeps.backends.base import Elements, JobState
from sweeps.backends.job_array import JobArray, element_id
from sweeps.state.ledger import Ledger

NAMED = 5  # jobs in a remark


def outdated_jobs(
    ledger: Ledger, latest: Mapping[str, tuple[JobArray, int]], elements: Elements
) -> dict[str, list[str]]:
    """Return queued elements that ask for other resources than the profile, each with what differs.

    What waits for such an element is among them: it would be cancelled with it.
    """
    jobs: dict[str, list[str]] = {}
    runs: set[str] = set()
    for run, (array, index) in latest.items():  # a segment comes before what waits for it
        element = elements.get((array.name, index))
        if element is None or element.state is not JobState.QUEUED:
            continue
        asked, now = asdict(array.resources), asdict(ledger.cluster.resources_of(ledger.scales[run]))
        differs = [f"{key}={asked[key]}, now {now[key]}" for key in now if asked[key] != now[key]]
        if differs or runs & set(ledger.lineage(run)):
            runs.add(run)
            jobs[element_id(element.job_id, index)] = differs
    return jobs


def remark(jobs: Mapping[str, list[str]], cluster: str) -> str:
    """Return a remark that names the outdated jobs and says how to replace them."""
    differs = dict.fromkeys(difference for each in jobs.values() for difference in each)
    names = [f"{cluster}:{job}" for job in jobs]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    counted = f"{len(jobs)} queued jobs ask" if len(jobs) > 1 else "a queued job asks"
    return (
        f"{counted} for what the profile said before ({'; '.join(differs)}): {shown}; "
        "launch resubmit=true replaces them"
    )
