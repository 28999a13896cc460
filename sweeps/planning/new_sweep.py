"""A new sweep file for a scale, with the vocabulary, batch and rates of the closest shipped sweep."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.config import ModelConfig
from model.config_validation import ConfigError
from model.flops import flops_per_token
from sweeps.config.compose import compose_study
from sweeps.config.folders import CONF, STUDY, find
from sweeps.planning.text_needed import COUNTED

# Shipped sweeps whose rates were tuned or published for their scale.
REFERENCES = ("demo", "study_15k", "study_30k", "study_60k", "isoflop_140m", "isoflop_370m")
SIMILAR = 2.0  # ratio of two widths below which the same vocabulary is taken
_OF_A_SHAPE = ("micro_batch", "threads")  # training keys that fit one scale on one machine


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A shipped sweep: the groups that it chooses, its settings by section, and its model file."""

    name: str
    groups: dict[str, str]  # such as {"model": "looped_30k"}
    settings: dict[str, dict[str, Any]]  # by section: sweep, optimizer, data, ...
    model: dict[str, Any]

    @property
    def scale(self) -> str:
        """Return the scale that it trains."""
        return self.groups["model"]

    @property
    def budgets_flops(self) -> list[float]:
        """Return its budgets."""
        return [float(flops) for flops in self.settings["sweep"]["budgets_flops"]]

    @property
    def study(self) -> Path | None:
        """Return the folder of its committed results, None if there are none."""
        docs = CONF.parent / "docs"
        folder = docs / "demo" / "pilot" if self.name == "demo" else docs / "study" / self.name
        return folder if (folder / "laws.json").exists() else None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a sweep file holds beside its grid."""

    groups: dict[str, str]
    sections: dict[str, dict[str, Any]]
    comments: dict[str, str]  # of the sections: where the values come from
    path: str | None = None  # of the text, for data=text


def looped_model(scale: str) -> ModelConfig:
    """Return the model of a scale; raises ConfigError if it is unknown or has no loop."""
    (run,) = compose_study([f"model={scale}"]).runs.values()
    if run.model.kind != "looped":
        raise ConfigError(f"scale={scale}: its kind is {run.model.kind}; choose a looped model of conf/model")
    return run.model


def closest_reference(scale: str, model: ModelConfig) -> Reference:
    """Return the shipped sweep of this scale, else of the same layout and the most similar width."""
    alone = model.prelude_layers + model.coda_layers == 0

    def distance(reference: Reference) -> tuple[bool, bool, float]:
        outside = reference.model["prelude_layers"] + reference.model["coda_layers"]
        ratio = abs(math.log(reference.model["width"] / model.width))
        return reference.scale != scale, (outside == 0) != alone, ratio

    return min(map(_reference, REFERENCES), key=distance)


def recipe(
    scale: str, model: ModelConfig, reference: Reference, data: str | None, path: str | None = None
) -> Recipe:
    """Return the groups and sections of a sweep file but its grid: those of `reference`, fitted to `scale`.

    `data` and `path` are the text that the user chose, None for that of `reference`. AdamW's rates are
    carried over to another width by `optimizer.lr_scaling=mup_width`.
    """
    source, width = f"conf/sweep/{reference.name}.yaml", reference.model["width"]
    groups = reference.groups | {"model": scale} | ({"data": data} if data else {})
    sections = {name: dict(keys) for name, keys in reference.settings.items() if name != "sweep"}
    sections["optimizer"] = optimizer = _rates(reference) | sections.get("optimizer", {})
    comments = dict.fromkeys(sections, f"as in {source}")
    on = f" on {reference.groups['data']}" if groups.get("data") != reference.groups.get("data") else ""
    comments["optimizer"] = f"the rates of {source}, chosen for this scale{on}; the same for every cell"
    if scale != reference.scale:
        training = sections.get("training", {})
        sections["training"] = {key: value for key, value in training.items() if key not in _OF_A_SHAPE}
        comments["optimizer"] = f"the rates of {source}, chosen for {reference.scale}; not tuned here"
    if model.width != width:
        optimizer |= {"lr_scaling": "mup_width", "lr_base_width": width}
        comments["optimizer"] += f", carried over from width {width}"
    sections["data"], comments["data"] = _data(scale, model, reference, groups, path)
    sections = {name: keys for name, keys in sections.items() if keys}
    return Recipe(groups=groups, sections=sections, comments=comments, path=path)


def _data(
    scale: str, model: ModelConfig, reference: Reference, groups: Mapping[str, str], path: str | None
) -> tuple[dict[str, Any], str]:
    """Return the data settings and their source: a vocabulary that fits the scale."""
    settings, width = dict(reference.settings.get("data", {})), reference.model["width"]
    source = f"as in conf/sweep/{reference.name}.yaml"
    if max(model.width, width) >= SIMILAR * min(model.width, width):
        settings.pop("vocabulary_size", None)
        source = f"the vocabulary of conf/data/{groups['data']}.yaml"
    if isinstance(fixed := model_file(scale).get("vocabulary_size"), int):
        settings["vocabulary_size"] = fixed
        source = f"the vocabulary of conf/model/{scale}.yaml"
    chosen = [f"model={scale}", f"data={groups['data']}"]
    chosen += [f"data.{key}={value}" for key, value in settings.items()]
    chosen += ["path=."] if path else []  # where the text is decides nothing here
    (run,) = compose_study(chosen).runs.values()
    flops, middle = flops_per_token(run.model, "paper"), 4
    head = 6 * run.model.width * run.model.vocabulary_size / flops.at(middle, middle / 2)
    settings["vocabulary_size"] = run.data.vocabulary_size
    return settings, f"{source}; the unembedding takes {head:.0%} of the FLOPs at µ = {middle}"


def sweep_text(name: str, command: str, content: Recipe, grid: Mapping[str, Any]) -> str:
    """Return the commented file of a sweep; `grid` is its section `sweep`."""
    lines = [
        "# @package _global_",
        f"# {name}: loss of {content.groups['model']} over mean recurrence at equal FLOPs. Written by",
        f"# {command}",
        "# Every value may be changed. loopscale plan --help explains the keys of a sweep, --help all every",
        f"# key; loopscale plan sweep={name} --cfg job prints all with their values.",
        "defaults: # the chosen file of each group; the command line overrules them",
        *(
            f"  - override /{group}: {value}{_described(group, content)}"
            for group, value in content.groups.items()
        ),
        *_grid_lines(name, content.groups["model"], grid),
    ]
    if content.path is not None:
        lines.append(f"path: {flow(content.path)} # of the text")
    for section, keys in content.sections.items():
        lines.append(f"{section}: # {content.comments[section]}")
        lines += [f"  {key}: {flow(value)}{_meaning(section, key, content)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _described(group: str, content: Recipe) -> str:
    """Return a comment on the chosen data set: its tokens at the sweep's vocabulary, where they are known."""
    if group != "data":
        return ""
    name, vocabulary = content.groups["data"], content.sections["data"]["vocabulary_size"]
    count = COUNTED.get(name, {}).get(vocabulary)
    held = f"about {count / 1e6:.3g} million training tokens; " if count else ""
    return f" # {held}loopscale plan says how many the longest run reads"


def _meaning(section: str, key: str, content: Recipe) -> str:
    """Return the comment that explains a key in the files of conf/, with its "#"; empty if there is none."""
    chosen = CONF / section / f"{content.groups.get(section)}.yaml"
    files = [CONF / f"{STUDY}.yaml", chosen, *sorted((CONF / section).glob("*.yaml"))]
    texts = (path.read_text(encoding="utf-8") for path in files if path.exists())
    lines = (line for text in texts for line in text.splitlines())
    found = (re.match(rf"\s*{key}: [^#]*(# .*)", line) for line in lines)
    return next((f" {match[1]}" for match in found if match), "")


def _neighbour(scale: str) -> str:
    """Return the shipped looped scale of the most similar size."""
    sizes = {
        path.stem: float(match[1]) * {"k": 1e3, "m": 1e6}[match[2]]
        for path in sorted((CONF / "model").glob("looped_*.yaml"))
        if (match := re.fullmatch(r"looped_(\d+)([km])", path.stem))
    }
    size = sizes.pop(scale, 0) or looped_model(scale).width ** 2  # of a file of the user's, about
    return min(sizes, key=lambda other: abs(math.log(sizes[other] / size)))


def _grid_lines(name: str, scale: str, grid: Mapping[str, Any]) -> Iterator[str]:
    yield "sweep:"
    yield f"  name: {name} # its folder below root"
    yield f"  mean_recurrences: {flow(grid['mean_recurrences'])} # µ; even ones lie on isoFLOP curves"
    yield "  control: fixed # the same model at exactly one loop, at every budget"
    yield f"  budgets_flops: {flow(grid['budgets_flops'])} # of one run each; one curve per budget"
    other = _neighbour(scale)
    yield f"  # scales: [{scale}, {other}] # several sizes on this grid each: the law in size (phi) needs two"
    yield "  cells: # further seeds at some budgets: the noise, for intervals and verdicts"
    yield "    # where you change budgets_flops, change these lengths too, to some of those budgets"
    for cell, keys in grid["cells"].items():
        listed = ", ".join(f"{key}: {flow(value)}" for key, value in keys.items())
        yield f"    {cell}: {{ {listed} }}"


def _reference(name: str) -> Reference:
    groups, settings = _read(CONF / "sweep" / f"{name}.yaml")
    return Reference(name=name, groups=groups, settings=settings, model=model_file(groups["model"]))


def _read(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Return the groups that a sweep file chooses and its sections, those of its parents included."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups: dict[str, str] = {}
    sections: dict[str, dict[str, Any]] = {}
    for item in [*content.pop("defaults", []), "_self_"]:
        if isinstance(item, dict):
            groups |= {key.removeprefix("override /"): value for key, value in item.items()}
        elif item != "_self_":
            more, sections = _read(path.parent / f"{item}.yaml")
            groups |= more
    for name, keys in content.items():
        sections[name] = sections.get(name, {}) | keys
    return groups, sections


def _rates(reference: Reference) -> dict[str, float]:
    """Return the learning rates that a reference has from its optimizer profile."""
    path = CONF / "optimizer" / f"{reference.groups.get('optimizer', 'muon_adamw')}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for parent in content.get("defaults", []):
        content = yaml.safe_load((path.parent / f"{parent}.yaml").read_text(encoding="utf-8")) | content
    return {key: content[key] for key in ("muon_learning_rate", "adamw_learning_rate")}


def model_file(scale: str) -> dict[str, Any]:
    """Return the content of a model file."""
    path = find("model", scale)
    if path is None:
        raise ConfigError(f"scale={scale} is no file of conf/model")
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def flow(value: Any) -> str:
    """Return a value as YAML on one line; large numbers as 1e12, which Hydra reads as numbers."""
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, int) and value >= 1e5:
        return f"{value:_}"
    if isinstance(value, float) and value >= 1e6:
        return f"{value:.6g}".replace("e+", "e")
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
