"""The evaluation bundle: tasks of a suite and their items, validated line by line; imports no torch.

A bundle is a folder with `core.yaml` (the tasks), `eval_meta_data.csv` (their random baselines) and
`eval_data/` (JSON lines), in the layout of DCLM and nanochat.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from model.config_validation import ConfigError, check_name, closest
from model.outside_files import check_regular

Kind = Literal["multiple_choice", "schema", "language_modeling"]
EXTENDED = Path(__file__).parent / "core_extended.yaml"  # the tasks that Core-Extended adds to Core
MOST_SHOTS = 1000
# The fields of an item, by kind of task: before the delimiter, and after it.
_FIELDS: dict[Kind, tuple[str, str]] = {
    "multiple_choice": ("query", "choices"),
    "schema": ("context_options", "continuation"),
    "language_modeling": ("context", "continuation"),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: its file under eval_data, how an item becomes a prompt, and its official baseline."""

    label: str
    file: str
    kind: Kind
    shots: int
    delimiter: str = " "
    baseline: float | None = None  # random accuracy from eval_meta_data.csv; None if not listed there


@dataclass(frozen=True, slots=True)
class Item:
    """One item. Option i is stem i, the delimiter and ending i.

    A multiple-choice item has one stem, a schema one ending, and a language-modelling item one option.
    """

    stems: tuple[str, ...]
    endings: tuple[str, ...]
    gold: int = 0

    @property
    def options(self) -> int:
        """Return the number of options; 1 where the answer is generated."""
        return max(len(self.stems), len(self.endings))

    def option(self, index: int) -> tuple[str, str]:
        """Return the stem and the ending of an option."""
        return self.stems[index % len(self.stems)], self.endings[index % len(self.endings)]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The tasks of a suite, and the labels of those whose data the bundle lacks."""

    name: str
    tasks: tuple[Task, ...]
    absent: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of tasks, absent ones included."""
        return len(self.tasks) + len(self.absent)


def read_suite(bundle: Path, name: str) -> Suite:
    """Return the tasks of a suite.

    Parameters
    ----------
    name : core, core_extended, symbolic, or the label of one task.

    Raises
    ------
    ConfigError : the name is unknown, or the folder is not a bundle.
    """
    if name == "symbolic":
        return Suite(name=name, tasks=tuple(_tasks(bundle / "symbolic.yaml", bundle)))
    known = _tasks(bundle / "core.yaml", bundle)
    core = tuple(task.label for task in known)
    known += _tasks(EXTENDED, bundle)
    chosen = {"core": core, "core_extended": tuple(task.label for task in known)}.get(name, (name,))
    tasks = [task for task in known if task.label in chosen]
    if not tasks:
        options = ["core", "core_extended", "symbolic", *(task.label for task in known)]
        raise ConfigError(f"tasks={name} is unknown{closest(name, options) or f' in {bundle}'}")
    present = [task for task in tasks if (bundle / "eval_data" / task.file).is_file()]
    absent = [task.label for task in tasks if task not in present]
    return Suite(name=name, tasks=tuple(present), absent=tuple(absent))


def read_items(bundle: Path, task: Task) -> list[Item]:
    """Return the validated items of a task, in the order of the file.

    Raises
    ------
    ConfigError : a line is not a JSON object, lacks a field, has a field of the wrong type or a gold index
        out of range; the message names file and line.
    """
    path = bundle / "eval_data" / task.file
    check_regular(path)
    items = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                items.append(_item(json.loads(line), task.kind))
            except (ValueError, RecursionError) as error:
                foreign = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError)
                reason = "not JSON" if foreign else error
                raise ConfigError(f"{path}:{number}: {reason}") from None
    if len(items) <= task.shots:
        raise ConfigError(f"{path}: {len(items)} items, {task.label} needs more than its {task.shots} shots")
    return items


def data_digest(bundle: Path, task: Task) -> str:
    """Return the SHA-256 of a task's file."""
    with (bundle / "eval_data" / task.file).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _tasks(path: Path, bundle: Path) -> list[Task]:
    """Return the tasks listed in a file like core.yaml, with the baselines of the bundle."""
    try:
        for file in (path, bundle / "eval_meta_data.csv"):
            check_regular(file)
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["icl_tasks"]
        baselines = _baselines(bundle / "eval_meta_data.csv")
        return [_task(entry, baselines) for entry in entries]
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ConfigError(f"{bundle} is no evaluation bundle: it has no {name}") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ConfigError(f"{path} is no list of tasks: {' '.join(str(error).split())}") from None


def _task(entry: dict[str, Any], baselines: dict[str, float]) -> Task:
    label, kind, shots = entry["label"], entry["icl_task_type"], entry["num_fewshot"][0]
    delimiter = entry.get("continuation_delimiter", " ")
    if not isinstance(label, str) or not isinstance(delimiter, str):
        raise ConfigError(f"task {label}: label and continuation_delimiter={delimiter!r} must be texts")
    check_name("label", label)  # part of the names of result files
    if kind not in get_args(Kind):
        raise ConfigError(f"task {label}: icl_task_type={kind}, not {', '.join(get_args(Kind))}")
    file = Path(entry["dataset_uri"])
    if file.is_absolute() or ".." in file.parts:
        raise ConfigError(f"task {label}: dataset_uri={file} leads out of the bundle")
    if type(shots) is not int or not 0 <= shots <= MOST_SHOTS:
        raise ConfigError(f"task {label}: num_fewshot={shots!r}, an integer from 0 to {MOST_SHOTS} is needed")
    baseline = baselines.get(label)
    if baseline is not None and not 0 <= baseline < 1:
        raise ConfigError(f"task {label}: its random baseline is {100 * baseline:g}, not from 0 to below 100")
    return Task(label=label, file=str(file), kind=kind, shots=shots, delimiter=delimiter, baseline=baseline)


def _baselines(path: Path) -> dict[str, float]:
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            return {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(handle)}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(
            f"{path} is no table of baselines ({error}): it needs the columns Eval Task and Random baseline"
        ) from None


def _item(fields: Any, kind: Kind) -> Item:
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    before, after = (_texts(fields, name) for name in _FIELDS[kind])
    if kind == "language_modeling":
        return Item((before[0].strip(),), after)
    gold, options = fields.get("gold"), max(len(before), len(after))
    if options < 2:
        raise ValueError(f"{options} options, at least 2 are needed")
    if type(gold) is not int or not 0 <= gold < options:
        raise ValueError(f"gold={gold}, an index from 0 to {options - 1} is needed")
    return Item(before, after, gold)


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    many = name in ("choices", "context_options")
    value = fields.get(name)
    texts: Sequence[Any] = value if many and isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts) or many != isinstance(value, list):
        raise ValueError(f"{name} must be {'a list of texts' if many else 'a text'}, got {str(value)[:40]}")
    for text in texts:
        if name in ("choices", "continuation") and not text.strip():
            raise ValueError(f"{name} has an empty text, whose probability is 1 for every model")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} has half a surrogate pair, which no text has: {text[:40]!a}") from None
    return tuple(texts)
