"""One run's folder: configuration, identity, status, lease. The files are the truth; imports no torch."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.config import RunConfig
from harness.data_config import DataError
from harness.dataset import Dataset, open_dataset
from harness.files import read_json, write_json, write_text
from harness.identity import canonical_json, difference, identity, name_of, run_id
from harness.locks import exclusive, is_held
from harness.record import planned_record
from harness.remember import once_per_object
from model.checked import ConfigError, build

# libyaml's, where it is built in: ten times as fast
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

State = Literal["planned", "submitted", "running", "done", "failed"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands. `failure_class` and `message` say why a failed one failed."""

    state: State
    failure_class: str = ""
    message: str = ""
    attempts: int = 0
    step: int = 0
    steps: int = 0
    ended_before: str = ""  # failure class that ended the attempt before, "lost" where it left no word
    updated_s: float = 0.0  # seconds since the epoch
    failures: dict[str, int] = field(default_factory=dict)  # so far, by class

    def failed(self, failure_class: str, message: str) -> Status:
        """Return this status as a failure of the class, counted."""
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

    def status(self) -> Status:
        """Return the status; a folder without one counts as planned."""
        try:
            return Status(**read_json(f"{self.path}/status.json"))  # a Path costs as much as the reading
        except FileNotFoundError:
            return Status(state="planned")

    def set_status(self, status: Status, *, sync: bool = True) -> None:
        fields = vars(status) | {"updated_s": time.time()}
        write_json(self.path / "status.json", fields, sync=sync)

    def record(self) -> dict[str, Any]:
        """Return the run's row of the runs table; its results are None until the run is done."""
        return read_json(self.path / "record.json")

    def set_record(self, row: dict[str, Any], *, sync: bool = True) -> None:
        write_json(self.path / "record.json", row, sync=sync)

    def micro_batch(self) -> int | None:
        """Return how many sequences a process of the last attempt took at once, None before there was one."""
        path = self.path / "micro_batch.json"
        return int(read_json(path)["micro_batch"]) if path.exists() else None

    def set_micro_batch(self, sequences: int) -> None:
        write_json(self.path / "micro_batch.json", {"micro_batch": sequences})

    def config(self) -> RunConfig:
        """Return the run's configuration. Raises ConfigError when the folder holds none."""
        path = self.path / "config.yaml"
        if not path.exists():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        try:
            fields = yaml.load(path.read_text(encoding="utf-8"), Loader=SafeLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"{path} is damaged: it holds no settings")
        return build(RunConfig, fields)

    def data_digest(self) -> str:
        return str(self._identity()["data_digest"])

    def dataset(self, cache: Path) -> Dataset:
        """Open the data set that the run was planned with; raises DataError when `cache` does not hold it."""
        digest = self.data_digest()
        if not (cache / digest).is_dir():
            raise DataError(f"data {digest} is not under {cache}: make it with loopscale data, same settings")
        return open_dataset(cache / digest)

    def _identity(self) -> dict[str, Any]:
        try:
            return read_json(self.path / "identity.json")
        except FileNotFoundError:
            raise ConfigError(f"{self.path} is not a run folder: it has no identity.json") from None

    def check(self) -> RunConfig:
        """Return the configuration after checking that folder name, identity and configuration agree.

        Raises ConfigError naming the fields that differ when the folder is another configuration's.
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
        """Hold the run for one process; gives False when another one has it. A killed holder lets go."""
        return exclusive(self.path / "lease", wait=False)

    def is_held(self) -> bool:
        """Say whether a process trains this run now."""
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
    """Create (or return) the folder of a solved `run` under `parent`; one that exists is checked first.

    `prefix` stands before its name.
    """
    fields = identity(run, data_digest)
    name = prefix + name_of(run, fields)
    folder = RunFolder(parent / name)
    if (folder.path / "status.json").exists():
        _settle(folder, run)
        return folder
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.path / "config.yaml", config_text(run), sync=sync)
    write_json(folder.path / "identity.json", fields, sync=sync)
    row = planned_record(
        run, run_id=name, sweep=parent.name, data_digest=data_digest, unique_tokens=unique_tokens
    )
    folder.set_record(row, sync=sync)
    # Last, because its presence says that the folder is complete.
    folder.set_status(Status(state="planned", steps=run.steps or 0), sync=sync)
    return folder


def _settle(folder: RunFolder, run: RunConfig) -> None:
    """Check a folder that is there, and let it have the machine settings of `run` from now on."""
    text = config_text(run)
    if (folder.path / "config.yaml").read_text(encoding="utf-8") == text:
        return
    stored = folder.check()
    status = folder.status()
    if status.state == "done":
        return
    if "oom" in status.failures:  # its micro-batch was made to fit
        training = dataclasses.replace(run.training, micro_batch=stored.training.micro_batch)
        text = config_text(dataclasses.replace(run, training=training))
    write_text(folder.path / "config.yaml", text)


def config_text(run: RunConfig) -> str:
    """Return `run` as YAML; sections that many runs share are formatted once."""
    lines = []
    for item in dataclasses.fields(run):
        value = getattr(run, item.name)
        lines.append(
            _yaml(item.name, _section(value) if dataclasses.is_dataclass(value) else json.dumps(value))
        )
    return "".join(lines)


@once_per_object
def _section(config: Any) -> str:
    return json.dumps(dataclasses.asdict(config))


@lru_cache(maxsize=4096)
def _yaml(name: str, content: str) -> str:
    return str(yaml.dump({name: json.loads(content)}, Dumper=SafeDumper, sort_keys=False))
