"""What a site allows: elements in an array, jobs in the queue, nodes that take jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from model.config_validation import ConfigError
from sweeps.backends.base import SchedulerError
from sweeps.config.cluster import ClusterConfig, Resources

# What sbatch prints when the queue holds as many jobs of the user, account or QOS as it may.
FULL = re.compile(r"MaxSubmit\w*Limit|MaxSubmitJob|GrpSubmitJob", re.IGNORECASE)
CLOSED = ("down", "drain", "fail", "maint", "power", "unk", "inval", "futr", "future")  # states of nodes


def array_limit(settings: Mapping[str, str]) -> int:
    """Return the number of elements that one array may have, by the controller's configuration."""
    size = int(settings["MaxArraySize"])
    tasks = re.search(r"max_array_tasks=(\d+)", settings.get("SchedulerParameters", ""))
    return min(size, int(tasks[1])) if tasks else size


@dataclass(frozen=True, kw_only=True)
class SubmitLimit:
    """How many jobs of a user may be in the queue; of one account or one QOS where it is named."""

    jobs: int
    account: str = ""
    qos: str = ""

    def room(self, queued: Iterable[tuple[str, str]]) -> int:
        """Return how many more there may be, from the account and the QOS of each of the user's jobs."""
        counted = sum(self.account in ("", account) and self.qos in ("", qos) for account, qos in queued)
        return max(0, self.jobs - counted)


def submit_limits(
    run: Callable[..., str], user: str, cluster: str, config: ClusterConfig
) -> list[SubmitLimit]:
    """Return the limits by associations and QOS that hold for the jobs of this profile.

    What accounting does not tell is not known here: the answer to a submission will tell it.
    """
    wanted = [config.resources, *(config.resources_of(scale) for scale in config.per_scale)]
    listing = ("--noheader", "--parsable2", "show")
    owner = (f"user={user}", f"cluster={cluster}")
    try:
        default_account = run("sacctmgr", *listing, "user", user, "format=DefaultAccount").strip()
        associations = run(
            "sacctmgr", *listing, "assoc", "where", *owner, "format=Account,DefaultQOS,QOS,MaxSubmitJobs"
        )
        levels = run("sacctmgr", *listing, "qos", "format=Name,MaxSubmitJobsPerUser")
    except (SchedulerError, ConfigError):
        return []
    accounts = {each.account or default_account for each in wanted}
    limits, names = [], {each.qos for each in wanted if each.qos}
    for line in associations.splitlines():
        account, default, allowed, jobs = (*line.split("|"), "", "", "", "")[:4]
        if account in accounts:
            limits += [SubmitLimit(jobs=int(jobs), account=account)] if jobs.isdigit() else []
            if not all(each.qos for each in wanted):
                names.add(_default_qos(default, allowed.split(",")))
    for line in levels.splitlines():
        qos, _, jobs = line.partition("|")
        limits += [SubmitLimit(jobs=int(jobs), qos=qos)] if qos in names and jobs.isdigit() else []
    return limits


def _default_qos(default: str, allowed: Sequence[str]) -> str:
    """Return the QOS of a job that names none, "" where accounting does not tell; "normal" is SLURM's own."""
    if default or len(allowed) == 1:
        return default or allowed[0]
    return "normal" if "normal" in allowed else ""


def usable_nodes(text: str, resources: Resources) -> set[str]:
    """Return the nodes that take jobs of these resources, from lines of sinfo: partition, node, state."""
    wanted = (resources.partition or "").split(",")
    nodes = set()
    for line in text.splitlines():
        partition, node, state = (*line.split(), "", "")[:3]
        chosen = partition.endswith("*") if wanted == [""] else partition.rstrip("*") in wanted
        if chosen and not state.lower().startswith(CLOSED) and not state.endswith("*"):
            nodes.add(node)
    return nodes
