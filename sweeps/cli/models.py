"""`loopscale eval`, `export` and `generate`: the commands on trained models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from model.decoding import Decoding
from sweeps.cli.help import Command
from sweeps.config.compose import compose_table
from sweeps.config.model_commands import EvalConfig, ExportConfig, GenerateConfig

if TYPE_CHECKING:
    from harness.evaluation.decoded_losses import DecodedLoss
    from harness.run.record import Evaluation
    from sweeps.cli.evaluate import TaskScores


def evaluate_losses(settings: EvalConfig) -> Evaluation:
    """Return the validation loss of one model at every test-time depth."""
    from harness.evaluation.depth_curve import evaluate_folder
    from sweeps.cli.evaluate import models_of

    return evaluate_folder(
        models_of(settings)[0],
        Path(settings.cache),
        data=None if settings.data is None else Path(settings.data),
        blocks=settings.blocks,
        max_depth=settings.max_depth,
    )


def evaluate_decodings(settings: EvalConfig) -> list[DecodedLoss]:
    """Return the validation loss of one model under budgets of keys and values, or under exit rules."""
    from harness.evaluation.decoded_losses import evaluate_decodings
    from harness.evaluation.weights import own_depth
    from sweeps.cli.evaluate import models_of

    path = models_of(settings)[0]
    depth = settings.depth or own_depth(path)
    if settings.exit is None:
        decodings = [Decoding(depth=depth, kv_budget=kept) for kept in settings.kv_budget or []]
    else:
        decodings = [
            Decoding(depth=depth, exit=settings.exit, threshold=threshold)
            for threshold in settings.thresholds or []
        ]
        decodings += [Decoding(depth=loops) for loops in range(1, depth + 1)]
    return evaluate_decodings(
        path,
        Path(settings.cache),
        decodings,
        data=None if settings.data is None else Path(settings.data),
        blocks=settings.blocks,
    )


def evaluate_tasks(settings: EvalConfig) -> TaskScores:
    """Return the scores of the models on the tasks that `settings` names, with a progress bar."""
    from sweeps.cli.evaluate import evaluate_models
    from sweeps.cli.progress import stage_progress

    with stage_progress() as progress:
        return evaluate_models(settings, progress)


def export_model(settings: ExportConfig) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a model; return their folder."""
    from harness.evaluation.weights import export

    folder = Path(settings.folder)
    export(Path(settings.checkpoint), folder, cache=Path(settings.cache), layout=settings.layout)
    return folder


def generate_text(settings: GenerateConfig) -> str:
    """Return the text with which a model continues the prompt."""
    from harness.evaluation.completion import complete
    from harness.evaluation.weights import load_weights, tokenizer_file

    path = Path(settings.checkpoint)
    model = load_weights(path)
    return complete(
        model,
        tokenizer_file(path, Path(settings.cache)),
        [settings.prompt],
        new_tokens=settings.tokens,
        decoding=Decoding(
            depth=settings.depth or model.config.own_depth,
            kv_budget=settings.kv_budget,
            exit=settings.exit,
            threshold=settings.threshold,
        ),
        temperature=settings.temperature,
        seed=settings.seed,
    )[0]


def _eval(overrides: list[str]) -> str:
    settings = compose_table("eval", overrides)
    if settings.tasks is not None:
        scores = evaluate_tasks(settings)
        return scores.to_json() if settings.format == "json" else scores.summary()
    if settings.decodes:
        decoded = evaluate_decodings(settings)
        if settings.format == "json":
            return json.dumps([dataclasses.asdict(row) for row in decoded], indent=1)
        return _kv_budgets(decoded) if settings.exit is None else _exits(decoded)
    losses = evaluate_losses(settings)
    return json.dumps(vars(losses), indent=1) if settings.format == "json" else _depth_curve(losses)


def _depth_curve(result: Evaluation) -> str:
    """Return a model's loss at every test-time depth as text, with the law of that curve."""
    rows = zip(result.loss_nats, result.loss_se_nats, result.bits_per_byte, strict=True)
    lines = [
        f"{depth:>3}  {row[0]:11.4f}  {row[1]:.4f}  {row[2]:8.4f}" for depth, row in enumerate(rows, start=1)
    ]
    return "\n".join(["  T  loss (nats)     ±  bits/byte", *lines, _depth_law(result)])


def _kv_budgets(rows: list[DecodedLoss]) -> str:
    """Return the loss over the number of kept loops as text."""
    lines = [
        f"{row.decoding.kept_loops:>9}  {row.kv_bytes_per_token:>14}  {_decoded(row)}  "
        f"{row.bits_per_byte:8.4f}"
        for row in rows
    ]
    head = (
        f"kv_budget  KV bytes/token  loss (nats)     ±   - all {rows[0].decoding.depth:>2}     ±  bits/byte"
    )
    return "\n".join([head, *lines])


def _exits(rows: list[DecodedLoss]) -> str:
    """Return the loss over the loops spent, of an exit rule and of fixed depths, as text."""
    lines = []
    for row in rows:
        name = "T" if row.decoding.exit == "fixed" else row.decoding.exit
        value = row.decoding.depth if row.decoding.exit == "fixed" else row.decoding.threshold
        shares = " ".join(f"{share:.2f}" for share in row.loops_share) if name != "T" else ""
        lines.append(f"{f'{name} {value:g}':<19}  {row.mean_loops:>5.2f}  {_decoded(row)}  {shares}".rstrip())
    head = "rule                 loops  loss (nats)     ±  minus T     ±  share of tokens by loops, 1 2 3 ..."
    return "\n".join([head, *lines])


def _decoded(row: DecodedLoss) -> str:
    return f"{row.loss_nats:11.4f}  {row.loss_se_nats:.4f}  {row.excess_nats:+8.4f}  {row.excess_se_nats:.4f}"


def _depth_law(result: Evaluation) -> str:
    """Return the law of a depth curve in one line."""
    import numpy as np

    from analysis.laws.depth_curve import fit_depth_curve

    losses = np.array(result.loss_nats)
    law = fit_depth_curve(np.arange(1.0, len(losses) + 1), losses, errors=np.array(result.loss_se_nats))
    if law.rate is None:
        return f"L(T) = L_inf + Z exp(-z T): {law.refusal}"
    low, high = (f"{end:.2f}" if end is not None else "" for end in (law.rate_low, law.rate_high))
    return (
        f"L(T) = L_inf + Z exp(-z T): L_inf = {law.floor_nats:.4f} nats, Z = {law.amplitude_nats:.4f}, "
        f"z = {law.rate:.2f} [{low}, {high}] per loop"
    )


COMMANDS = {
    "eval": Command(
        run=_eval,
        summary="validation loss, test-time depth curve, Core and other tasks of a run or checkpoint",
        example="loopscale eval sweep=demo run=RUN_ID tasks=core depths=1,2,4,8",
        settings="table/eval",
    ),
    "export": Command(
        run=lambda overrides: str(export_model(compose_table("export", overrides))),
        summary="a model's config, weights and tokenizer as a self-contained folder",
        example="loopscale export checkpoint=runs/demo/RUN_ID folder=my_model",
        settings="table/export",
    ),
    "generate": Command(
        run=lambda overrides: generate_text(compose_table("generate", overrides)),
        summary="continue a prompt at a chosen test-time depth",
        example="loopscale generate checkpoint=runs/demo/RUN_ID prompt='def main(' depth=8",
        settings="table/generate",
    ),
}
