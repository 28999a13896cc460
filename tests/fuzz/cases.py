"""Hostile inputs by number: of each kind a sound base, one damage drawn from the number, one command."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

import loopscale
from tests.conftest import TINY_SWEEP, WORDS
from tests.fuzz.judge import Verdict, judged
from tests.fuzz.mutations import HOSTILE, changed, damage

QUICK = ["bootstrap=100", "validation=false"]
RUN = [
    "cache=cache",
    "data=text",
    "path=corpus",
    "data.vocabulary_size=270",
    "data.validation_fraction=0.2",
    "model=looped_40k",
    "model.mean_recurrence=2",
    "model.sequence_length=32",
    "training.batch_sequences=4",
    "training.threads=1",
    "training.log_every=1",
    "evaluation.blocks=8",
    "evaluation.max_depth=2",
]
ITEM = {"query": "The sky?", "choices": ["blue", "red"], "gold": 0}
TASK = {
    "label": "colours",
    "dataset_uri": "world/colours.jsonl",
    "num_fewshot": [1],
    "icl_task_type": "multiple_choice",
}
CONFIGURED = {
    "plan": ["sweep=demo_quick"],
    "fit": ["data=tables/points.csv", "columns.compute=flops", "columns.x=size", "columns.loss=val", *QUICK],
    "compare": ["data=tables", "bootstrap=100"],
    "status": ["sweep=tiny"],
    "collect": ["sweep=tiny"],
    "generate": ["checkpoint=export", "prompt=lona", "tokens=2", "cache=cache"],
    "train": [*RUN, "tokens=256"],
}
SERVED = ["checkpoint=export", "cache=cache", "batches=1", "prompts=4", "tokens=2", "repeats=1"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile input in a folder: the command that reads it, and what names it in a refusal."""

    command: list[str]
    named: list[str]


def make_base(folder: Path) -> None:
    """Make what the cases damage copies of: a collected sweep, an export, text, tables, a bundle."""
    from tests.analysis.stats.test_bootstrap import points
    from tests.analysis.synthetic import INSIDE, study

    (folder / "corpus").mkdir(parents=True)
    for number in range(20):
        draw = random.Random(number)
        (folder / "corpus" / f"{number:02}.txt").write_text(" ".join(draw.choices(WORDS, k=300)))
    _make_texts(folder / "texts")
    own = [f"cache={folder / 'cache'}", f"path={folder / 'corpus'}"]
    settings = [f"root={folder / 'runs'}", *RUN, *TINY_SWEEP, "sweep.mean_recurrences=[2]", *own]
    from sweeps.launch.launch import write_ledger
    from sweeps.workers.local_pool import work

    write_ledger(loopscale.compose([*settings, "sweep.tokens=[640,1280]"]))
    work(folder / "runs" / "tiny", stop=lambda: False)
    loopscale.collect(["sweep=tiny", f"root={folder / 'runs'}"])
    run = next(path.parent for path in sorted((folder / "runs" / "tiny").glob("*/record.json")))
    (folder / "run").write_text(run.name)
    loopscale.export([f"checkpoint={run}", f"folder={folder / 'export'}", own[0]])
    (folder / "tables").mkdir()
    runs, depths = study(budgets=INSIDE[:2], recurrences=(2, 4), replicates=((0, 0),))
    for name, frame in (("runs", runs), ("depths", depths)):
        frame.to_parquet(folder / "tables" / f"{name}.parquet")
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    names = {"compute": "flops", "x": "size", "loss": "val"}
    points().drop(columns="block").rename(columns=names).to_csv(folder / "tables" / "points.csv", index=False)
    (folder / "bundle" / "eval_data" / "world").mkdir(parents=True)
    (folder / "bundle" / "core.yaml").write_text(yaml.dump({"icl_tasks": [TASK]}))
    (folder / "bundle" / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncolours,50\n")
    items = (folder / "bundle" / "eval_data" / "world" / "colours.jsonl").open("w")
    with items:
        items.writelines(json.dumps(ITEM | {"gold": number % 2}) + "\n" for number in range(6))


def _make_texts(folder: Path) -> None:
    """Write the same documents in every format that is read."""
    folder.mkdir()
    texts = [" ".join(random.Random(number).choices(WORDS, k=200)) for number in range(40)]
    lines = "".join(
        json.dumps({"text": text, "split": "train" if at % 5 else "val"}) + "\n"
        for at, text in enumerate(texts)
    )
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (folder / "c.jsonl.zst").write_bytes(pa.compress(lines.encode(), codec="zstd", asbytes=True))
    (folder / "d.txt").write_text("\n".join(texts))
    pd.DataFrame({"text": texts}).to_parquet(folder / "e.parquet")


def make_case(kind: str, number: int, base: Path, folder: Path) -> Case:
    """Copy what a case needs from `base` to `folder`, damage it as `number` says, return the case."""
    draw = random.Random(f"{kind} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return KINDS[kind](draw, base, folder)


def run_case(kind: str, number: int, base: Path, folder: Path) -> tuple[Case, Verdict]:
    """Make a case in `folder` and return it with the verdict on it; the folder is removed."""
    case = make_case(kind, number, base, folder)
    try:
        return case, judged(case.command, folder, case.named)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copied(base: Path, folder: Path, *names: str) -> None:
    for name in names:
        if (base / name).is_dir():
            shutil.copytree(base / name, folder / name)
        else:
            shutil.copyfile(base / name, folder / name)


def _damaged(draw: random.Random, files: list[Path]) -> list[str]:
    """Damage one of the files; return what a refusal may name it by: its path or parts of it."""
    path = draw.choice(sorted(files))
    damage(path, draw)
    return [path.name, path.parent.name]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\n", " ")


def _settings(draw: random.Random, base: Path, folder: Path) -> Case:
    """Settings of a command on the command line."""
    command = draw.choice(sorted(CONFIGURED))
    needs = {
        "plan": ["cache"],
        "status": ["runs", "cache"],
        "collect": ["runs", "cache"],
        "train": ["corpus", "cache"],
    }
    needs |= {"generate": ["export"], "fit": ["tables"], "compare": ["tables"]}
    _copied(base, folder, *needs[command])
    return _with_hostile(draw, command, CONFIGURED[command])


def _with_hostile(draw: random.Random, command: str, sound: list[str]) -> Case:
    """Return a command whose sound settings are followed by hostile ones."""
    keys = _keys(command, sound)
    chosen = draw.sample(keys, draw.choice([1, 1, 2]))
    more = [
        f"{draw.choice(['', '', '', '+', '++', '~'])}{key}={_shown(draw.choice(HOSTILE))}" for key in chosen
    ]
    more = [text.replace("\ud800", "\udcff") for text in more]  # as Python shows a byte that is not UTF-8
    # A setting may be sound by itself and ask for what the others do not allow.
    others = [part for text in sound for part in text.split("=")]
    named = [*others, *(part for key in chosen for part in (key, key.rsplit(".", 1)[-1]))]
    return Case(
        command=[command, *sound, *more],
        named=[*named, *(text.partition("=")[2] for text in more), "key", "override"],
    )


def _keys(command: str, sound: list[str]) -> list[str]:
    from sweeps.cli.main import _command
    from sweeps.config.compose import composed_text

    return _flat(yaml.safe_load(composed_text(_command(command).settings, sound)))


def _flat(content: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return keys


def _sweep_file(draw: random.Random, base: Path, folder: Path) -> Case:
    """A sweep file of the user's."""
    (folder / "conf" / "sweep").mkdir(parents=True)
    source = Path(loopscale.__file__).parent / "conf" / "sweep" / "demo_quick.yaml"
    path = folder / "conf" / "sweep" / "mine.yaml"
    text = source.read_text()
    if draw.random() < 0.6:
        head, content = text.partition("\n")[0], yaml.safe_load(text)
        head = head if head.startswith("#") else ""
        path.write_text(f"{head}\n{json.dumps(changed(content, draw))}\n")
    else:
        path.write_text(text)
        damage(path, draw)
    groups = ("sweep", "model", "data", "cluster", "retry", "optimizer", "training", "evaluation")
    return Case(command=["plan", "sweep=mine"], named=["mine", *groups, *_flat(yaml.safe_load(text))])


def _run_files(*patterns: str) -> Callable[[random.Random, Path, Path], list[str]]:
    def damaged(draw: random.Random, base: Path, folder: Path) -> list[str]:
        _copied(base, folder, "runs", "cache")
        run = folder / "runs" / "tiny" / (base / "run").read_text()
        files = [path for pattern in patterns for path in run.glob(pattern) if path.is_file()]
        return [*_damaged(draw, files), run.name]

    return damaged


def _checkpoint(draw: random.Random, base: Path, folder: Path) -> Case:
    """A run's checkpoint, configuration and identity, evaluated."""
    name = (base / "run").read_text()
    named = _run_files("checkpoints/*/*", "checkpoints/*/*", "config.yaml", "identity.json")(
        draw, base, folder
    )
    command = ["eval", f"run=runs/tiny/{name}", "cache=cache", "max_depth=2", "blocks=2"]
    return Case(command=command, named=[*named, "checkpoint"])


def _export(draw: random.Random, base: Path, folder: Path) -> Case:
    """A model of somebody else's, asked for text."""
    _copied(base, folder, "export")
    named = _damaged(draw, list((folder / "export").iterdir()))
    return Case(command=["generate", *CONFIGURED["generate"]], named=named)


def _serving(draw: random.Random, base: Path, folder: Path) -> Case:
    """A model whose serving is measured: it is damaged, or the settings are hostile."""
    _copied(base, folder, "export")
    if draw.random() < 0.5:
        return _with_hostile(draw, "serve_cost", SERVED)
    named = _damaged(draw, list((folder / "export").iterdir()))
    return Case(command=["serve_cost", *SERVED], named=named)


def _tokenizer(draw: random.Random, base: Path, folder: Path) -> Case:
    """A tokenizer of somebody else's, for new data."""
    _copied(base, folder, "corpus")
    shutil.copyfile(base / "export" / "tokenizer.json", folder / "tokenizer.json")
    named = _damaged(draw, [folder / "tokenizer.json"])
    command = ["data", "data=text", "path=corpus", "cache=c", "data.tokenizer=tokenizer.json"]
    return Case(command=[*command, "data.validation_fraction=0.2"], named=named)


def _text(draw: random.Random, base: Path, folder: Path) -> Case:
    """Text in every format, one file of it damaged."""
    _copied(base, folder, "texts")
    named = _damaged(draw, list((folder / "texts").iterdir()))
    return Case(
        command=["data", "data=text", "path=texts", "cache=c", "data.vocabulary_size=270"], named=named
    )


def _data_set(draw: random.Random, base: Path, folder: Path) -> Case:
    """A prepared data set, trained on."""
    _copied(base, folder, "corpus", "cache")
    files = [
        path for path in (folder / "cache").rglob("*") if path.is_file() and not path.name.startswith(".")
    ]
    named = _damaged(draw, files)
    return Case(command=["train", *RUN, "tokens=256", "root=own"], named=[*named, "cache"])


def _state(draw: random.Random, base: Path, folder: Path) -> Case:
    """The state of a sweep, shown or collected."""
    named = _run_files(
        *("status.json", "record.json", "depth_curve.json", "metrics.jsonl", "config.yaml", "identity.json"),
        *("origin.json", "../sweep.json", "../sweep.json", "../planned.jsonl", "../*.parquet", "../*.csv"),
    )(draw, base, folder)
    command = draw.choice(
        [["status", "sweep=tiny"], ["collect", "sweep=tiny"], ["status", "sweep=tiny", "format=json"]]
    )
    return Case(command=command, named=[*named, "tiny"])


def _table(draw: random.Random, base: Path, folder: Path) -> Case:
    """Tables of runs and of points, fitted and compared."""
    _copied(base, folder, "tables")
    kind = draw.choice(["points.csv", "runs.csv", "runs.parquet", "depths.parquet"])
    damage(folder / "tables" / kind, draw)
    if kind == "points.csv":
        command = ["fit", *CONFIGURED["fit"]]
    elif kind == "runs.csv":
        command = [draw.choice(["fit", "compare"]), "data=tables/runs.csv", "bootstrap=100"]
    else:
        command = [draw.choice(["fit", "compare"]), "data=tables", "bootstrap=100"]
    command += ["validation=false"] if command[0] == "fit" and "validation=false" not in command else []
    # A table that is read says what its rows lack.
    return Case(
        command=command, named=[kind, "tables", "column", "run", "row", "points", "budget", "law", "schema"]
    )


def _bundle(draw: random.Random, base: Path, folder: Path) -> Case:
    """A bundle of tasks, on which a model is scored."""
    _copied(base, folder, "export", "bundle")
    named = _damaged(draw, [path for path in (folder / "bundle").rglob("*") if path.is_file()])
    command = [
        "eval",
        "checkpoint=export",
        "tasks=colours",
        "bundle=bundle",
        "folder=scores",
        "limit=3",
        "cache=cache",
    ]
    return Case(command=command, named=[*named, "colours"])


KINDS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "settings": _settings,
    "sweep file": _sweep_file,
    "checkpoint": _checkpoint,
    "export": _export,
    "serving": _serving,
    "tokenizer": _tokenizer,
    "text": _text,
    "data set": _data_set,
    "state": _state,
    "table": _table,
    "bundle": _bundle,
}
