"""`loopscale serve_cost`: what models cost to serve at each depth, beside their loss."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.serialize import Printed
from sweeps.cli.help import Command
from sweeps.cli.tables import as_json, as_text
from sweeps.config.compose import compose_table
from sweeps.config.model_commands import ServeCostConfig

if TYPE_CHECKING:
    import pandas as pd

    from model.transformer import LoopedTransformer

COLUMNS = {
    "model": "",
    "depth": "T",
    "kv_budget": "kept",
    "batch": "",
    "prompt_tokens": "prompt",
    "weights_mib": "weights MiB",
    "kv_bytes_per_token": "KV bytes/token",
    "prefill": "prefill tokens/s",
    "decode": "decode tokens/s",
    "decode_ms_per_token": "ms/token",
    "peak_mib": "peak MiB",
    "val_loss_nats": "loss (nats)",
    "front": "",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class ServeCost(Printed):
    """The cost of serving, one row per model, depth, batch and prompt length."""

    frame: pd.DataFrame
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Return the table and the remarks as text."""
        shown = self.frame.assign(
            weights_mib=self.frame["weights_bytes"] / 2**20,
            peak_mib=self.frame["peak_memory_bytes"] / 2**20,
            prefill=_with_range(self.frame, "prefill"),
            decode=_with_range(self.frame, "decode"),
            front=[_fronts(row) for row in self.frame.to_dict("records")],
        )
        return "\n".join([as_text(shown, COLUMNS), *self.notes])

    def to_json(self) -> str:
        """Return the rows and the remarks as JSON."""
        return as_json(self.frame, notes=self.notes)


def _with_range(frame: pd.DataFrame, name: str) -> list[str]:
    columns = frame[[f"{name}_tokens_per_s", f"{name}_low", f"{name}_high"]].to_numpy()
    return [f"{median:.0f} ({low:.0f} to {high:.0f})" for median, low, high in columns]


def _fronts(row: dict[Any, Any]) -> str:
    return ", ".join(name for name in ("bytes", "latency") if row[f"front_{name}"])


def measure_serve_cost(settings: ServeCostConfig) -> ServeCost:
    """Return the cost of the models that `settings` names; with `out`, write table and figure there."""
    import pandas as pd

    from analysis.serve_front import on_front

    models = _named(_models(settings))
    frame = pd.DataFrame([row for name, path in models.items() for row in _rows(name, path, settings)])
    frame["front_bytes"] = frame["front_latency"] = False
    for _, rows in frame.groupby(["batch", "prompt_tokens"]):
        for name, column in (("bytes", "serving_bytes"), ("latency", "decode_ms_per_token")):
            frame.loc[rows.index, f"front_{name}"] = on_front(rows[column], rows["val_loss_nats"])
    notes = list(_without_loss(frame, settings))
    if settings.out is not None:
        notes.append(f"written to {_write(frame, Path(settings.out))}")
    return ServeCost(frame=frame, notes=tuple(notes))


def _without_loss(frame: pd.DataFrame, settings: ServeCostConfig) -> Iterator[str]:
    """Yield why rows have no loss."""
    budgeted = frame["kv_budget"].notna()
    if budgeted.any():
        kept = settings.kv_budget
        yield f"no loss beside kv_budget={kept}: loopscale eval kv_budget={kept} measures it token by token"
    if frame.loc[~budgeted, "val_loss_nats"].isna().any():
        yield "no loss without held-out data: data=RUN names a run on whose data models are scored"


def _models(settings: ServeCostConfig) -> list[Path]:
    """Return the folders of the models: the one named or the finished runs of the sweep, and further ones."""
    from sweeps.cli.evaluate import finished_runs

    further = [Path(folder) for folder in settings.also]
    if settings.sweep is not None:
        return [*finished_runs(Path(settings.root) / settings.sweep), *further]
    return [Path(settings.checkpoint or ""), *further]


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the models by the names of their folders, by their paths where folders have the same name."""
    counts = Counter(path.name for path in set(paths))
    return {path.name if counts[path.name] == 1 else str(path): path for path in paths}


def _rows(name: str, path: Path, settings: ServeCostConfig) -> Iterator[dict[str, Any]]:
    """Yield the rows of one model; a model without a loop has one depth."""
    from harness.evaluation.serving import Traffic, measure_serving, weights_bytes
    from model.decoding import Decoding, kv_bytes_per_token

    model, losses = _served(path, settings), _losses(path, settings)
    weights, element = weights_bytes(model), model.embedding.element_size()
    context = model.config.sequence_length
    prompts = settings.prompts or [max(1, context // 4), max(1, context // 2)]
    new = settings.tokens or max(1, min(32, context // 4))
    for depth in _depths(model, settings):
        kept = settings.kv_budget if settings.kv_budget and settings.kv_budget < depth else None
        decoding = Decoding(depth=depth, kv_budget=kept)
        per_token = kv_bytes_per_token(model.config, decoding, element_bytes=element)
        for batch, prompt in itertools.product(settings.batches, prompts):
            traffic = Traffic(batch=batch, prompt_tokens=prompt, new_tokens=new)
            speed = measure_serving(model, decoding, traffic, repeats=settings.repeats)
            yield {
                "model": name,
                "kind": model.config.table_kind,
                "depth": depth,
                "kv_budget": kept,
                "batch": traffic.batch,
                "prompt_tokens": traffic.prompt_tokens,
                "new_tokens": traffic.new_tokens,
                "weights_bytes": weights,
                "kv_bytes_per_token": per_token,
                "serving_bytes": weights + speed.kv_cache_bytes,
                **vars(speed),
                "decode_ms_per_token": 1000 * traffic.batch / speed.decode_tokens_per_s,
                "val_loss_nats": losses.get(depth) if kept is None else None,
            }


def _served(path: Path, settings: ServeCostConfig) -> LoopedTransformer:
    """Return a model on its device, in the precision in which it is served."""
    import torch

    from harness.distributed.process_group import ALONE
    from harness.evaluation.weights import load_weights
    from harness.training.device import device_named, prepare_process

    device = device_named(settings.device, ALONE)
    prepare_process(device)
    model = load_weights(path).to(device)
    if settings.precision == "bfloat16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _depths(model: LoopedTransformer, settings: ServeCostConfig) -> list[int]:
    if model.config.kind == "transformer":
        return [1]
    return sorted(set(settings.depths or [model.config.own_depth]))


def _losses(path: Path, settings: ServeCostConfig) -> dict[int, float]:
    """Return the validation loss by depth, of a run on its own data or of any model on that of `data`."""
    from harness.evaluation.depth_curve import evaluate_folder
    from harness.evaluation.weights import is_run

    if settings.data is None and not is_run(path):
        return {}
    data = None if settings.data is None else Path(settings.data)
    deepest = max(settings.depths) if settings.depths else None
    found = evaluate_folder(path, Path(settings.cache), data=data, max_depth=deepest)
    return dict(enumerate(found.loss_nats, start=1))


def _write(frame: pd.DataFrame, out: Path) -> Path:
    """Write the table, and the figure of the smallest batch and shortest prompt."""
    from analysis.figures.serve_cost import serve_cost_figure
    from analysis.figures.style import save_figure

    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "serve_cost.csv", index=False)
    least = frame[["batch", "prompt_tokens"]].min()
    drawn = serve_cost_figure(frame[(frame[["batch", "prompt_tokens"]] == least).all(axis=1)])
    if drawn is not None:
        save_figure(drawn, out)
    return out


def _run(overrides: list[str]) -> str:
    settings = compose_table("serve_cost", overrides)
    cost = measure_serve_cost(settings)
    return cost.to_json() if settings.format == "json" else cost.summary()


COMMANDS = {
    "serve_cost": Command(
        run=_run,
        summary="bytes and speed of serving models at each depth, beside their loss",
        example="loopscale serve_cost sweep=demo depths=1,2,4,8",
        settings="table/serve_cost",
    ),
}
