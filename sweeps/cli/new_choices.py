"""What a new sweep chooses from: its questions on a terminal, and the lists of the help."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from model.config_validation import ConfigError, closest
from sweeps.cli.help import described, profile_keys, wrapped
from sweeps.config.commands import NewConfig
from sweeps.config.compose import compose_table
from sweeps.config.folders import CONF, NAME, choices, find, user_folders


def asked(settings: NewConfig, overrides: Sequence[str]) -> NewConfig:
    """Return the settings with answers to what is not given; an empty answer is the default."""
    answers: list[str] = []
    folders = [*user_folders(), CONF]

    def ask(question: str) -> str:
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().replace(" ", "")

    if settings.scale is None:
        answers.append("scale=" + ask(f"scale ({', '.join(scales())}; new --help describes them)"))
    if settings.data is None and settings.path is None:
        profiles = choices("data", folders)
        question = f"text: a file or folder of yours, or one of {', '.join(profiles)} (empty: as shipped)"
        if given := ask(question):
            answers += [f"data={given}"] if given in profiles else ["data=text", f"path={given}"]
    if settings.budgets_flops is None and settings.allowance is None:
        given = ask(
            "FLOP budgets, as 1e12,2e12,4e12; or one allowance for all runs, FLOPs as 1e14 or device-hours "
            "as 20h (empty: as shipped, or as many tokens per parameter)"
        )
        if given:
            answers.append(f"{'budgets_flops' if ',' in given else 'allowance'}={given}")
    if settings.mean_recurrences is None and (given := ask("mean recurrences µ (empty: as shipped)")):
        answers.append(f"mean_recurrences={given}")
    return compose_table("new", [*overrides, *answers])


def check_name(name: str) -> None:
    """Refuse a name that no file can have, or that is taken."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"sweep={name}: name it with letters, digits, '_', '-' and '.' alone")
    if (taken := find("sweep", name)) is not None:
        raise ConfigError(f"sweep={name}: {taken} exists already; choose another name, or edit that file")


def one_scale(scale: str | None) -> str:
    """Return the scale; raises ConfigError if it is not given, unknown, or several."""
    if scale is None:
        raise ConfigError(f"scale is not set: scale=..., one of {', '.join(scales())}")
    if "," not in scale and find("model", scale) is None:
        near = closest(scale, scales()) if len(scales()) > 12 else ""
        raise ConfigError(f"scale={scale} is unknown{near}; there are {', '.join(scales())}")
    if "," in scale:
        first, *others = scale.split(",")
        raise ConfigError(
            f"scale={scale}: a new file has one scale, to which its budgets fit. Write it with scale={first} "
            f"and add the line `scales: [{first}, {', '.join(others)}]` below `sweep:`, for its grid at each"
        )
    return scale


def scales() -> dict[str, str]:
    """Return the names of the looped models with what each is, the smallest first."""
    models = {name: text for name, text in described("model").items() if not name.startswith("transformer")}

    def size(name: str) -> float:
        number = re.search(r"_(\d+)([km])$", name)
        return int(number[1]) * {"k": 1e3, "m": 1e6}[number[2]] if number else 0.0

    return {name: models[name] for name in sorted(models, key=size)}


def listed_choices() -> list[str]:
    """Return the lines of the help on what can be chosen."""
    lines: list[str] = []
    for key, named in (("scale", scales()), ("data", described("data")), ("cluster", described("cluster"))):
        files = CONF / ("model" if key == "scale" else key)
        lines += ["", f"{key}=, files of {files} and yours (conf/, LOOPSCALE_CONFIG, --config-dir):"]
        width = max(map(len, named))
        for name, text in named.items():
            lines += wrapped(f"{name:<{width}}  {text}", "  ", " " * (width + 4))
    return [*lines, *profile_keys()]
