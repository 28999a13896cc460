"""The folder of one run: configuration, identity, status, record, lease. Imports no torch.

A run of a sweep has no folder until something is written into it. Until then its files are read from its line
in the sweep's planned.jsonl (`harness.run.pending_runs`).
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.data.dataset import DataError, Dataset, open_dataset
from harness.run.config import CONFIG, RunConfig, config_text, parse_config
from harness.run.identity import canonical_json, difference, identity, run_id
from harness.run.pending_runs import Files, pending_file, pending_files, pending_lines, write_files
from harness.run.record import planned_record
from harness.storage.files import exclusive, is_held, read_json, read_text, write_json, write_text
from model.config_validation import ConfigError, build

State = Literal["planned", "submitted", "running", "done", "failed"]


RESUMES = "delete {}, and the next launch goes on from the run's last checkpoint"
POSITIVE = ("steps", "batch_tokens", "tokens", "nominal_flops")  # of a record


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a run; `failure_class` and `message` are those of a failed one."""

    state: State
    failure_class: str = ""
    message: str = ""
    attempts: int = 0
    step: int = 0
    steps: int = 0
    ended_before: str = ""  # failure class of the attempt before, "lost" if it ended without a status
    updated_s: float = 0.0  # seconds since the epoch
    failures: dict[str, int] = field(default_factory=dict)  # so far, by class

    def __post_init__(self) -> None:
        for name in ("attempts", "step", "steps"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name}={value}: it cannot be negative")
        if not math.isfinite(self.updated_s):
            raise ValueError(f"updated_s={self.updated_s}: it must be a finite number of seconds")

    def failed(self, failure_class: str, message: str) -> Status:
        """Return this status as a failure of `failure_class`, counted."""
        failures = self.failures | {failure_class: self.failures.get(failure_class, 0) + 1}
        return dataclasses.replace(
            self, state="failed", failure_class=failure_class, message=message, failures=failures
        )

    def __str__(self) -> str:
        return f"failed:{self.failure_class}" if self.state == "failed" else self.state


@dataclass(frozen=True)
class RunFolder:
    """The folder `<root>/<sweep>/<run_id>`; every path inside is relative to it."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def sweep(self) -> str:
        return self.path.parent.name

    @property
    def depth_curve(self) -> Path:
        return self.path / "depth_curve.json"

    def exists(self) -> bool:
        """Return True if the folder exists with all its initial files, of which status.json is the last."""
        return os.path.exists(f"{self.path}/status.json")  # noqa: PTH110

    def is_run(self) -> bool:
        """Return True if this is the folder of a run or of a pending one."""
        return (self.path / "identity.json").exists() or self.run_id in pending_lines(self.path.parent)

    def ensure_created(self, *, sync: bool = True) -> bool:
        """Create the folder of a pending run with its initial files unless it exists.

        Must be called before anything is written into the folder. Several processes may call it at once.
        Returns True if the folder had to be created.
        """
        if self.exists() or not (files := pending_files(self.path)):
            return False
        write_files(self.path, files, keep=True, sync=sync)
        return True

    def content(self, name: str, read: Callable[[str], Any] = read_json) -> Any:
        """Return the content of the file `name`; while it is missing, what a pending run's will be.

        Raises FileNotFoundError if there is none.
        """
        path = f"{self.path}/{name}"  # making a Path takes as long as reading the file
        try:
            return read(path)
        except FileNotFoundError:
            if (pending := pending_file(self.path, name)) is not None:
                return pending
            return read(path)  # another process may have created the folder in between

    def status(self) -> Status:
        """Return the status, "planned" for a folder without one.

        Raises ConfigError naming the file, and the field that is not as it should be.
        """
        try:
            return build(Status, self.content("status.json"), f"{self.path}/status.json: ")
        except FileNotFoundError:
            return Status(state="planned")
        except ConfigError as error:
            raise ConfigError(f"{error}; {RESUMES.format('it')}") from None

    def set_status(self, status: Status, *, sync: bool = True) -> None:
        self.ensure_created(sync=sync)
        fields = vars(status) | {"updated_s": time.time()}
        write_json(self.path / "status.json", fields, sync=sync)

    def record(self) -> dict[str, Any]:
        """Return the run's row of the runs table; its results are None until the run is done.

        Raises ConfigError naming the file, and the field that is not as it should be; FileNotFoundError if
        there is no such run.
        """
        try:
            row = dict(self.content("record.json"))
            for name in POSITIVE:
                value = row.get(name)
                if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                    raise ConfigError(f"{self.path}/record.json: {name}={value!r} is no positive number")
        except FileNotFoundError:
            if not self.exists():
                raise
            raise ConfigError(f"{self.path}/record.json is lost; {RESUMES.format('status.json')}") from None
        except ConfigError as error:
            raise ConfigError(f"{error}; {RESUMES.format('it and status.json')}") from None
        return row

    def set_record(self, row: dict[str, Any], *, sync: bool = True) -> None:
        self.ensure_created(sync=sync)
        write_json(self.path / "record.json", row, sync=sync)

    def micro_batch(self) -> int | None:
        """Return the sequences per micro-batch of the last attempt, None before the first."""
        path = self.path / "micro_batch.json"
        return int(read_json(path)["micro_batch"]) if path.exists() else None

    def set_micro_batch(self, sequences: int) -> None:
        write_json(self.path / "micro_batch.json", {"micro_batch": sequences})

    def config(self) -> RunConfig:
        """Return the run's configuration. Raises ConfigError if the folder has none."""
        try:
            text = self.content(CONFIG, read_text)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self.path} is not a run folder: it has no {CONFIG}") from None
        return parse_config(text, self.path / CONFIG)

    def set_config(self, run: RunConfig) -> None:
        """Replace the run's configuration."""
        self.ensure_created()
        write_text(self.path / CONFIG, config_text(run))

    def data_digest(self) -> str:
        digest = self._identity().get("data_digest")
        if not isinstance(digest, str) or not digest.isalnum():
            raise ConfigError(f"{self.path}/identity.json: data_digest={digest!r} is no digest")
        return digest

    def dataset(self, cache: Path) -> Dataset:
        """Return the data set that the run was planned with. Raises DataError if it is not in `cache`."""
        digest = self.data_digest()
        if not (cache / digest).is_dir():
            raise DataError(f"data {digest} is not under {cache}: make it with loopscale data, same settings")
        return open_dataset(cache / digest)

    def _identity(self) -> dict[str, Any]:
        try:
            return dict(self.content("identity.json"))
        except FileNotFoundError:
            raise ConfigError(f"{self.path} is not a run folder: it has no identity.json") from None

    def check(self) -> RunConfig:
        """Return the configuration after checking that folder name, identity and configuration agree.

        Raises ConfigError naming the fields that differ.
        """
        run, stored = self.config(), self._identity()
        expected = identity(run, self.data_digest())
        if canonical_json(expected) != canonical_json(stored):
            raise ConfigError(
                f"{self.path} is the folder of another configuration ({difference(expected, stored)}): "
                "restore its config.yaml or use another folder"
            )
        name = run_id(run, self.data_digest())
        if name[-8:] != self.run_id[-8:]:
            raise ConfigError(
                f"{self.path} is the folder of another run: its configuration belongs to {name}"
            )
        return run

    def lease(self) -> AbstractContextManager[bool]:
        """Lock the run for this process; yields False if another process holds it."""
        self.ensure_created()
        return exclusive(self.path / "lease", wait=False)

    def is_held(self) -> bool:
        """Return True if a process trains this run now."""
        return is_held(self.path / "lease")


def create(
    parent: Path,
    run: RunConfig,
    *,
    data_digest: str,
    unique_tokens: int,
    sync: bool = True,
    prefix: str = "",
) -> RunFolder:
    """Return the folder of a solved `run` under `parent`, created or, if it exists, checked.

    `prefix` precedes its name.
    """
    folder = RunFolder(parent / (prefix + run_id(run, data_digest)))
    folder.ensure_created(sync=sync)
    if folder.exists():
        reconcile(folder, run)
    else:
        files = initial_files(folder, run, data_digest=data_digest, unique_tokens=unique_tokens)
        write_files(folder.path, files, keep=False, sync=sync)
    return folder


def initial_files(folder: RunFolder, run: RunConfig, *, data_digest: str, unique_tokens: int) -> Files:
    """Return the initial files of the folder of a solved `run`."""
    row = planned_record(
        run,
        run_id=folder.run_id,
        sweep=folder.sweep,
        data_digest=data_digest,
        unique_tokens=unique_tokens,
    )
    return {
        CONFIG: config_text(run),
        "identity.json": identity(run, data_digest),
        "record.json": row,
        # Last, because its presence marks the folder as complete.
        "status.json": vars(Status(state="planned", steps=run.steps or 0, updated_s=time.time())),
    }


def reconcile(folder: RunFolder, run: RunConfig) -> None:
    """Check that an existing folder is that of `run` and give it the machine settings of `run`."""
    text = config_text(run)
    if (folder.path / CONFIG).read_text(encoding="utf-8") == text:
        return
    stored = folder.check()
    status = folder.status()
    if status.state == "done":
        return
    if "oom" in status.failures:  # its micro-batch was reduced to fit
        training = dataclasses.replace(run.training, micro_batch=stored.training.micro_batch)
        run = dataclasses.replace(run, training=training)
    folder.set_config(run)
