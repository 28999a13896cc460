"""The command line: find the command, run it, and print its result or a one-line error."""

from __future__ import annotations

import importlib
import io
import itertools
import os
import sys
from collections.abc import Sequence

from model.config_validation import ConfigError, closest
from sweeps.cli.help import Command, command_help, usage
from sweeps.config.folders import SEARCH_PATH

# The commands in the order of the help, by the module of this folder that holds them.
FAMILIES = {
    "training": ("data", "train"),
    "models": ("eval", "export", "generate"),
    "new": ("new",),
    "planning": ("plan",),
    "launching": ("launch", "status", "cancel", "retry", "collect"),
    "syncing": ("sync",),
    "fitting": ("fit", "report"),
    "comparing": ("compare",),
    "serving": ("serve_cost",),
    "pursue": ("pursue",),
    "demo": ("demo",),
    "completion": ("completion",),
}
NAMES = tuple(name for names in FAMILIES.values() for name in names)
DISTRIBUTED = ("train", "eval")  # may run as several processes, of which the first one prints


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on stderr and exit code 2.

    LOOPSCALE_TRACEBACK=1 shows the traceback behind that line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale: no result is lost for a µ
            stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--complete"]:  # asked for by the scripts of `loopscale completion`
        from sweeps.cli.completion import candidates

        print("\n".join(candidates(arguments[1], NAMES)))
        return
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage({name: _command(name) for name in NAMES}))
        return
    if arguments[0] == "--version":
        import importlib.metadata

        print(f"loopscale {importlib.metadata.version('loopscale')}")
        return
    name, *overrides = arguments
    try:
        command = _command(name)
        if {"--help", "-h", "--help=all"} & set(overrides):
            print(command_help(name, command, whole=bool({"all", "--help=all"} & set(overrides))))
            return
        overrides, shown = _flags(_positional(command.positional, overrides))
        if shown:
            from sweeps.config.compose import composed_text

            print(composed_text(command.settings, overrides))
            return
        text = command.run(overrides)
        if text is not None and (name not in DISTRIBUTED or int(os.environ.get("RANK", 0)) == 0):
            print(text, flush=True)
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
    except BrokenPipeError:  # the reader of stdout, for example head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("LOOPSCALE_TRACEBACK") or not _is_answer(error):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"loopscale: {message}", file=sys.stderr)
        sys.exit(2)


def _is_answer(error: Exception) -> bool:
    """Return True for what a user's files or settings cause; anything else is a fault of this program."""
    # Named, as importing safetensors here would slow every command.
    return (
        isinstance(error, ValueError | OSError | RecursionError | MemoryError)
        or type(error).__name__ == "SafetensorError"
    )


def _positional(key: str | None, arguments: list[str]) -> list[str]:
    """Return the arguments with `KEY VALUE` or `VALUE` at their beginning as `KEY=VALUE`."""
    words = list(itertools.takewhile(lambda text: "=" not in text and text[:1] not in "-~+", arguments[:2]))
    if key is None or not words:
        return arguments
    if words == [key]:  # and its value was forgotten
        return arguments[1:]
    used = 2 if words[0] == key and len(words) == 2 else 1
    return [f"{key}={words[used - 1]}", *arguments[used:]]


def _flags(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Return the overrides, `--config-dir DIR` as one of them, and whether `--cfg job` was among them."""
    overrides, shown, rest = [], False, iter(arguments)
    for text in rest:
        flag, equals, value = text.partition("=")
        if flag not in ("--config-dir", "-cd", "--cfg", "-c"):
            overrides.append(text)
            continue
        value = value if equals else next(rest, "")
        if flag in ("--config-dir", "-cd"):
            overrides.append(f"{SEARCH_PATH}={value}")
        elif value == "job":
            shown = True
        else:
            raise ConfigError(f"{flag} {value}: write --cfg job, which prints the composed configuration")
    return overrides, shown


def _command(name: str) -> Command:
    for family, names in FAMILIES.items():
        if name in names:
            commands: dict[str, Command] = importlib.import_module(f"sweeps.cli.{family}").COMMANDS
            return commands[name]
    raise ConfigError(f"unknown command {name}{closest(name, NAMES)}")
