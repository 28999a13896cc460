"""What `loopscale --help` says: the commands, their settings, and the keys of every group."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.data.config import DataConfig
from harness.run.config import LoggerConfig, OptimizerConfig, ScheduleConfig
from model.config import ModelConfig
from sweeps.config.cluster import ClusterConfig, RetryConfig
from sweeps.config.compose import CONF
from sweeps.config.study import SweepConfig

GROUPS = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "logger": LoggerConfig,
    "sweep": SweepConfig,
    "cluster": ClusterConfig,
    "retry": RetryConfig,
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command as `--help` tells it."""

    summary: str
    example: str
    settings: str  # file under conf/ whose keys it takes


COMMANDS = {
    "data": Command(
        summary="read text, train the tokenizer, write token shards",
        example="loopscale data data=text path=my_corpus/",
        settings="config",
    ),
    "train": Command(
        summary="train one run, or resume it; -m trains a product, key=a,b, one after the other",
        example="loopscale train model=looped_90k model.mean_recurrence=4 budget_flops=1e11",
        settings="config",
    ),
    "eval": Command(
        summary="validation loss, test-time depth curve, Core and other tasks of a run or checkpoint",
        example="loopscale eval sweep=demo run=RUN_ID tasks=core depths=1,2,4,8",
        settings="table/eval",
    ),
    "export": Command(
        summary="a model's config, weights and tokenizer as a folder that stands alone",
        example="loopscale export checkpoint=runs/demo/RUN_ID folder=my_model",
        settings="table/export",
    ),
    "generate": Command(
        summary="continue a prompt at a chosen test-time depth",
        example="loopscale generate checkpoint=runs/demo/RUN_ID prompt='def main(' depth=8",
        settings="table/generate",
    ),
    "plan": Command(
        summary="solve a grid and price it; writes only for design=, suggest= and calibrate=",
        example="loopscale plan sweep=isoflop_140m accounting=released",
        settings="config",
    ),
    "launch": Command(
        summary="plan, confirm, start what is missing, return at once",
        example="loopscale launch sweep=demo confirm=false",
        settings="config",
    ),
    "status": Command(
        summary="how a launched sweep stands",
        example="loopscale status sweep=demo watch=true",
        settings="table/status",
    ),
    "cancel": Command(
        summary="stop a launched sweep, or one run; launch continues it",
        example="loopscale cancel sweep=demo",
        settings="table/cancel",
    ),
    "retry": Command(
        summary="start failed runs again",
        example="loopscale retry sweep=demo failed=true",
        settings="table/retry",
    ),
    "collect": Command(
        summary="one table of runs and one of (run, depth), Parquet and CSV",
        example="loopscale collect sweep=demo",
        settings="table/collect",
    ),
    "sync": Command(
        summary="rebuild the wandb runs of a sweep from its metrics",
        example="loopscale sync sweep=demo mode=online",
        settings="table/sync",
    ),
    "fit": Command(
        summary="scaling laws with confidence intervals, or the reasons for none",
        example="loopscale fit data=points.csv columns.compute=flops columns.x=params columns.loss=loss",
        settings="table/fit",
    ),
    "report": Command(
        summary="figures (PDF, PNG, CSV) and one self-contained HTML page",
        example="loopscale report data=parcae_published",
        settings="table/report",
    ),
    "compare": Command(
        summary="looped against fixed depth at equal FLOPs",
        example="loopscale compare sweep=demo",
        settings="table/compare",
    ),
    "demo": Command(
        summary="everything above in one go on this machine's CPU",
        example="loopscale demo quick=true",
        settings="config",
    ),
}


def usage() -> str:
    """Return the text of `loopscale --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: loopscale COMMAND [key=value | group=name | +key=value ...]",
            "",
            "Scaling-law studies of looped language models.",
            "",
            *lines,
            "",
            "loopscale COMMAND --help shows the command's settings and an example.",
        ]
    )


def command_help(name: str) -> str:
    """Return the text of `loopscale COMMAND --help`: an example, the settings, the groups with their keys."""
    command = COMMANDS[name]
    text = (CONF / f"{command.settings}.yaml").read_text()
    study = command.settings == "config"
    body = text[text.index("\nroot:") :] if study else text
    return "\n".join(
        [
            f"loopscale {name}: {command.summary}",
            "",
            f"example: {command.example}",
            "",
            f"settings (key=value), from conf/{command.settings}.yaml:",
            body.strip(),
            *(_groups() if study else []),
        ]
    )


def _groups() -> list[str]:
    """Return every group with its choices, then its keys with their defaults."""
    lines = [
        "",
        "groups (group=name) and their keys (group.key=value), with the defaults that files override:",
    ]
    for group, cls in GROUPS.items():
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        lines += ["", *_wrapped(f"{group}=  {choices}", "  "), *_wrapped(" ".join(_keys(cls, group)), "    ")]
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _keys(configuration: Any, prefix: str) -> Iterator[str]:
    """Yield the keys of a configuration, a class or an instance, as they are written on the command line."""
    for item in dataclasses.fields(configuration):
        key = f"{prefix}.{item.name}"
        value = item.default_factory() if callable(item.default_factory) else item.default
        value = value if isinstance(configuration, type) else getattr(configuration, item.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, key)
        else:
            yield f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "..."
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "").replace("'", "")
