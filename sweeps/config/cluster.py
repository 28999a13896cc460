"""Cluster profiles: where runs execute, what a job asks for, and what follows each class of failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from model.config_validation import ConfigError, build, check_line, check_name, closest

_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
Count = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]

# By cluster.kind: the factory of a backend, called with the profile, or where to import it when it is used.
BACKENDS: dict[str, str | Callable[[ClusterConfig], Any]] = {
    "local": "sweeps.backends.local:LocalPool",
    "slurm": "sweeps.backends.slurm.cluster:Slurm",
    "fake": "sweeps.backends.simulated:SimulatedCluster",
}
TRAIN_HERE = {"local"}  # those kinds whose runs train on this machine


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks for. None leaves the site's default."""

    ALSO_CALLED: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("time", "hours", "max_hours", "time_limit", "walltime", "timeout"), "time_min"),
        **dict.fromkeys(("gpus", "gres"), "gpus_per_node"),
        **dict.fromkeys(("mem", "memory"), "memory_gb"),
        "cpus": "cpus_per_task",
        "queue": "partition",
        "project": "account",
    }

    nodes: Count = 1
    tasks_per_node: Count = 1  # ranks on each node
    ranks: Literal["srun", "torchrun"] = "srun"  # who starts them
    gpus_per_node: Annotated[int, Ge(0)] | None = None
    cpus_per_task: Count | None = None
    memory_gb: PositiveFloat | None = None  # per node
    time_min: Count = 60
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # further options of the scheduler, by name
    runs_per_job: Count = 1
    parallel_runs: Count = 1  # of a job's runs, side by side

    def __post_init__(self) -> None:
        for key in ("partition", "qos", "account", "constraint"):
            check_line(f"resources.{key}", str(getattr(self, key)))
        for name, value in self.options.items():
            check_line(f"resources.options.{name}", str(value))
            if not _OPTION.fullmatch(name):
                raise ConfigError(f"resources.options has {name!a}: an option is written as mail-type")
        if self.world_size > 1 and self.parallel_runs > 1:
            raise ConfigError(
                f"parallel_runs={self.parallel_runs} with {self.world_size} ranks: runs side by side have "
                "one rank each; set parallel_runs=1, or nodes=1 and tasks_per_node=1"
            )

    @property
    def world_size(self) -> int:
        """Return the number of ranks of one run."""
        return self.nodes * self.tasks_per_node

    @property
    def devices(self) -> int:
        """Return the number of GPUs of one job, or of its ranks where it asks for none."""
        return self.nodes * (self.gpus_per_node or self.tasks_per_node)


@dataclass(frozen=True, kw_only=True)
class FakeConfig:
    """The script of the simulated cluster; times are in simulated seconds."""

    slots: Count = 64  # jobs that run at once
    queue_s: Annotated[float, Ge(0)] = 60.0
    run_s: PositiveFloat = 600.0
    failures: dict[str, Annotated[float, Ge(0), Lt(1)]] = field(
        default_factory=dict
    )  # share of attempts, by failure class
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """A cluster profile: how jobs are started there, what each scale asks for, and what a device delivers."""

    ALSO_CALLED: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("workers", "processes", "jobs", "parallel", "max_parallel"), "parallel_runs"),
        "threads": "threads_per_run",
    }

    kind: str = "local"  # a key of BACKENDS
    threads_per_run: Count = 1
    start_s: Annotated[float, Ge(0)] = 0.0  # from a free place to a job's first step, for the plan's times

    # a pool of worker processes
    parallel_runs: Count | None = None

    # a queue of job arrays
    name: str | None = None  # None: as the scheduler reports it
    resources: Resources = field(default_factory=Resources)
    per_scale: dict[str, dict[str, Any]] = field(default_factory=dict)  # fields of resources, by scale
    array_parallelism: Count = 256  # jobs of one resource shape that run at once
    max_array_tasks: Count | None = None  # elements in one array; None: as the scheduler says
    max_queued: Count | None = None  # elements of all the user's arrays in the queue; None: as the site says
    keep_submitting: bool = False  # what finds no room in the queue is submitted by a job that follows
    signal_s: Count = 90  # a job gets a signal this long before its time limit, and saves a checkpoint
    requeue: bool | None = None  # a stopped job queues itself again; None: if the site allows it
    patience_s: Annotated[float, Ge(0)] = 120.0  # how long to wait for a scheduler that does not answer
    bad_node_after: Count = 3  # jobs that end on a node before they begin, after which the sweep avoids it
    python: str | None = None  # None: the launching interpreter; or e.g. apptainer exec --nv image.sif python
    setup: list[str] = field(default_factory=list)  # shell lines before the run, e.g. module load cuda

    fake: FakeConfig = field(default_factory=FakeConfig)

    # what a plan is priced and checked with
    device: str | None = None
    device_memory_gb: PositiveFloat | None = None
    device_peak_flops_per_s: PositiveFloat | None = None
    device_utilisation: Annotated[float, Gt(0), Lt(1)] = 0.4  # of that peak, until it is measured

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("cluster.name", self.name)
        check_line("cluster.python", self.python or "")  # not setup, which is a script
        if self.kind not in BACKENDS:
            raise ConfigError(f"cluster.kind={self.kind} is not known{closest(self.kind, BACKENDS)}")
        for scale in self.per_scale:
            self.resources_of(scale)

    @property
    def trains_here(self) -> bool:
        """Return True if the runs train on this machine."""
        return self.kind in TRAIN_HERE

    def resources_of(self, scale: str) -> Resources:
        """Return what a job of this scale asks for."""
        own = self.per_scale.get(scale)
        if own is None:
            return self.resources
        if not isinstance(own, Mapping):
            raise ConfigError(f"cluster.per_scale.{scale}={own}: must be a group of keys")
        return build(Resources, asdict(self.resources) | dict(own), f"cluster.per_scale.{scale}.")


Action = Literal["resume", "halve_micro_batch", "exclude_node"]


@dataclass(frozen=True, kw_only=True)
class RetryRule:
    """How often a run is started again after failures of one class, and what changes before it is."""

    retries: Annotated[int, Ge(0)] = 0
    action: Action = "resume"


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """One rule for each failure class. No rule changes what is trained."""

    oom: RetryRule = RetryRule(retries=6, action="halve_micro_batch")
    timeout: RetryRule = RetryRule(retries=100)
    preempted: RetryRule = RetryRule(retries=1000)
    node_failure: RetryRule = RetryRule(retries=5, action="exclude_node")
    hang: RetryRule = RetryRule(retries=5, action="exclude_node")
    restarted: RetryRule = RetryRule(retries=100)
    not_started: RetryRule = RetryRule(retries=10)
    lost: RetryRule = RetryRule(retries=2)
    diverged: RetryRule = RetryRule()
    bad_config: RetryRule = RetryRule()
    code_error: RetryRule = RetryRule()

    def rule(self, failure_class: str) -> RetryRule:
        """Return the rule of a class; an unknown class is not retried."""
        rule = getattr(self, failure_class, None)
        return rule if isinstance(rule, RetryRule) else RetryRule()
