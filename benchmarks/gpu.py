"""How fast and how right is training on this GPU? One line of JSON per section, then a table.

python benchmarks/gpu.py [--tiny] [--eager] [--seconds 450] [--out FILE] [--only SECTION ...]

Needs numpy, torch, pydantic, safetensors and PyYAML: no Hydra, no submitit, no network, no data (tokens are
random). A section's line is printed when it ends, so that a run that is cut short still counts; one that
fails says so in its line, and one that no longer fits in `--seconds` is named as left out. `--tiny` is the
same on any device in minutes, with `--eager`, which compiles nothing, in seconds: to test the script.

device      speed of a square bfloat16 product and of a copy: what the others are held against
attention   the kernel that ran, by the profiler's name, and its time: deterministic or not, with a mask
precision   bfloat16, eager and compiled, against float32: error of the loss and of the gradient by part
step        a training step at 140M: {compiled, eager} x {active sequences, all to the deepest draw}
loop        one loop through the core without gradient, by the number of active sequences
kernels     shares of a step's time on the device by kind of kernel, and the share in which it waits
memory      the planner's estimate against the measured peak, and the speed, of larger models
resume      six steps against three, a checkpoint, and three more: equal bits or not; seconds to save
search      the micro-batch found in .15 of the memory, and the gradient afterwards against a fresh model's
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.data.dataset import DataConfig
from harness.data.loader import Batch
from harness.distributed.parallel import replicate
from harness.distributed.process_group import ALONE
from harness.optim.sharded_optimizer import ShardedOptimizer
from harness.run.config import OptimizerConfig, RunConfig, TrainingConfig
from harness.training.checkpoint import open_newest
from harness.training.checkpoint_writer import save
from harness.training.device import (
    demand_determinism,
    device_name,
    forget_peak_memory,
    peak_flops_per_s,
    peak_memory_bytes,
    prepare_process,
    workload_of,
)
from harness.training.micro_batch import find_micro_batch
from harness.training.session import Session
from harness.training.step import GradientOfStep, draw
from model.config import ModelConfig
from model.flops import flops_per_token
from model.kernels import autocast, compile_blocks, kernels_for, name_in_use
from model.memory import memory_estimate_bytes
from model.transformer import build_model

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]
BOS = 0
# By part of a kernel's name, the first that fits.
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "::mm", "::addmm", "cublas"),
    "cross-entropy": ("softmax", "nll", "cross_entropy"),
    "fills": ("fill", "memset", "zero"),
    "copies": ("copy", "memcpy", "cat"),
    "reductions": ("reduce", "norm", "sum"),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured: of the real run, or of `--tiny`."""

    scale: str = "looped_140m"
    larger: tuple[tuple[str, int], ...] = (
        ("looped_370m", 16),
        ("looped_1300m", 4),
    )  # with their micro-batches
    model: tuple[tuple[str, Any], ...] = ()  # in place of the scale's own values
    batch: int = 32
    active: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    steps: int = 5
    side: int = 8192
    attention: tuple[int, int, int, int] = (32, 6, 2048, 128)


TINY = Sizes(
    larger=(("looped_140m", 2),),
    model=(
        ("width", 64),
        ("heads", 2),
        ("vocabulary_size", 256),
        ("sequence_length", 32),
        ("mean_recurrence", 3),
    ),
    batch=4,
    active=(1, 2),
    steps=2,
    side=256,
    attention=(2, 2, 64, 32),
)


class Bench:
    """The device, the sizes and what the first section has measured."""

    def __init__(self, sizes: Sizes, *, compiled: bool = True) -> None:
        self.sizes, self.compiled = sizes, compiled
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        prepare_process(self.device)
        peaks = yaml.safe_load((ROOT / "conf" / "loopscale.yaml").read_text())["training"]["device_peaks"]
        training = TrainingConfig(precision="bfloat16", device_peaks=peaks)
        self.peak = peak_flops_per_s(training, self.device)  # of the data sheet
        self.measured = self.peak  # of a product, by section `device`

    def run(self, scale: str = "", **training: Any) -> RunConfig:
        """Return the configuration of a run of some steps; by default bfloat16 and compiled."""
        scale = scale or self.sizes.scale
        model = yaml.safe_load((ROOT / "conf" / "model" / f"{scale}.yaml").read_text())
        defaults = {"precision": "bfloat16", "compile": self.compiled, "batch_sequences": self.sizes.batch}
        defaults |= {"micro_batch": min(self.sizes.batch, training.get("batch_sequences", self.sizes.batch))}
        return RunConfig(
            scale=scale,
            model=ModelConfig(**(model | dict(self.sizes.model))),
            data=DataConfig(name="random", source="text", path="none"),
            optimizer=OptimizerConfig(newton_schulz_dtype="bfloat16"),
            training=TrainingConfig(**(defaults | training)),
            steps=self.sizes.steps,
        )

    def seconds(self, action: Callable[[], Any]) -> float:
        """Return how long the device takes for an action that is submitted to it."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            action()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def best(self, action: Callable[[], Any], repeats: int = 7) -> float:
        """Return the median of some repeats, after two that are not counted."""
        for _ in range(2):
            action()
        return median(self.seconds(action) for _ in range(repeats))

    def kernels(self, action: Callable[[], Any]) -> tuple[dict[str, float], float]:
        """Return the seconds of every kernel on the device by name, and the wall time of the action."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            wall = self.seconds(action)
        spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        times = {event.key: getattr(event, spent) / 1e6 for event in profile.key_averages()}
        return {name: value for name, value in times.items() if value > 0}, wall


class Trainer:
    """One model that takes training steps on random tokens, as a run does."""

    def __init__(self, bench: Bench, run: RunConfig, seed: int | None = 0) -> None:
        torch.compiler.reset()
        workload = workload_of(run, bench.device)
        kernels = kernels_for("auto", workload)
        self.model = build_model(run.model, seed=seed, device=bench.device, kernels=kernels)
        if run.training.compile:
            compile_blocks(self.model.all_blocks(), largest_batch=run.training.batch_sequences)
        self._bench, self.run = bench, run
        replica = replicate(self.model, ALONE, "ddp")
        self.session = Session(
            run=run,
            ranks=ALONE,
            device=bench.device,
            replica=replica,
            optimizer=ShardedOptimizer(replica, run.optimizer),
            kernels=name_in_use(kernels, workload),
        )
        self._gradient = GradientOfStep(run, replica, run.training.micro_batch or 1, BOS)

    def gradient(self, step: int, *, deepest: bool = False) -> tuple[float, float]:
        """Compute a step's gradient; return its loss and executed FLOPs.

        deepest : all sequences run as deep as the deepest of the draw, as in the published code.
        """
        model, batch = self.run.model, self.run.training.batch_sequences
        tokens = np.random.default_rng(step).integers(
            1, model.vocabulary_size, (batch, model.sequence_length + 1)
        )
        draws = draw(self.run, step, 0, 1)
        if deepest:
            draws = replace(draws, depths=[max(draws.depths)] * batch)
        made = self._gradient.compute(draws, Batch(tokens=tokens[:, :-1], labels=tokens[:, 1:]), probe=False)
        return made.loss_nats, made.flops

    def step(self, step: int, *, deepest: bool = False) -> float:
        """Take a training step; return its executed FLOPs."""
        flops = self.gradient(step, deepest=deepest)[1]
        self.session.optimizer.set_schedule(1.0, 1.0)
        self.session.optimizer.step()
        self.session.optimizer.drop_gradients()
        return flops

    def timed_step(self, step: int, *, deepest: bool = False) -> tuple[float, float]:
        """Take a training step; return its seconds and executed FLOPs."""
        flops = [0.0]

        def take() -> None:
            flops[0] = self.step(step, deepest=deepest)

        return self._bench.seconds(take), flops[0]

    def weights(self) -> list[torch.Tensor]:
        """Return copies of all weights."""
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def device(bench: Bench) -> Figures:
    """Measure a square product and a copy."""
    side = bench.sizes.side
    matrix = torch.randn(side, side, device=bench.device).bfloat16()
    other = torch.empty_like(matrix)
    bench.measured = 2 * side**3 / bench.best(lambda: torch.mm(matrix, matrix, out=other))
    copy = 2 * matrix.numel() * matrix.element_size() / bench.best(lambda: other.copy_(matrix))
    return {
        "name": device_name(bench.device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "peak_tflops": bench.peak / 1e12,
        "product_tflops": bench.measured / 1e12,
        "copy_tb_per_s": copy / 1e12,
    }


def attention(bench: Bench) -> Figures:
    """Time attention and name its kernels."""
    batch, heads, length, channels = bench.sizes.attention
    q, k, v = (
        torch.randn(batch, heads, length, channels, device=bench.device).bfloat16().requires_grad_()
        for _ in range(3)
    )
    documents = torch.arange(length, device=bench.device).div(max(1, length // 3), rounding_mode="floor")
    mask = (documents[:, None] == documents).tril().expand(batch, 1, length, length)
    flops = 2 * 2 * batch * heads * length**2 * channels  # of the forward pass, the upper triangle too
    rows = []
    for deterministic, masked in itertools.product((False, True), (False, True)):
        torch.use_deterministic_algorithms(deterministic)
        options: Any = {"attn_mask": mask} if masked else {"is_causal": True}

        def forward(options: Any = options) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v, **options)

        y = forward()
        grad = torch.randn_like(y)

        def backward(y: torch.Tensor = y, grad: torch.Tensor = grad) -> None:
            torch.autograd.grad(y, (q, k, v), grad, retain_graph=True)

        slowest = [max(times, key=times.get) for times, _ in map(bench.kernels, (forward, backward))]  # type: ignore[arg-type]
        ahead, back = bench.best(forward), bench.best(backward)
        rows.append(
            {
                "deterministic": deterministic,
                "mask": masked,
                "forward": slowest[0][:120],
                "backward": slowest[1][:120],
                "forward_us": ahead * 1e6,
                "backward_us": back * 1e6,
                "causal_tflops": 3.5 * flops / 2 / (ahead + back) / 1e12,
            }
        )
    torch.use_deterministic_algorithms(False)
    return {"shape": list(bench.sizes.attention), "rows": rows}


def precision(bench: Bench) -> Figures:
    """Compare loss and gradient with those of float32, at the same weights.

    They are those after a step: at first every block is the identity. A step of each form's own would compare
    other things, because Muon makes much of the smallest singular values of a gradient.
    """
    batch = max(1, bench.sizes.batch // 4)
    results, weights = {}, None
    for name, settings in (
        ("float32", {"precision": "float32", "compile": False}),
        ("bfloat16 eager", {"compile": False}),
        ("bfloat16 compiled", {"compile": bench.compiled}),
    ):
        trainer = Trainer(bench, bench.run(batch_sequences=batch, **settings))
        if weights is None:
            trainer.step(0)
            weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        trainer.model.load_state_dict(weights)
        loss, _ = trainer.gradient(1)
        parts: dict[str, list[torch.Tensor]] = {}
        for key, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                parts.setdefault(key.split(".")[0], []).append(parameter.grad.flatten().float())
        results[name] = loss, {part: torch.cat(grads) for part, grads in parts.items()}
    loss, truth = results.pop("float32")
    return {
        "float32_loss_nats": loss,
        "rows": [
            {
                "form": name,
                "loss_error": abs(other / loss - 1),
                "gradient_error": {p: float((grads[p] - truth[p]).norm() / truth[p].norm()) for p in truth},
            }
            for name, (other, grads) in results.items()
        ],
    }


def step(bench: Bench) -> Figures:
    """Time training steps of the four forms."""
    rows = []
    for compiled, deepest in itertools.product(dict.fromkeys((bench.compiled, False)), (False, True)):
        forget_peak_memory(bench.device)
        torch._dynamo.utils.counters.clear()
        run = bench.run(compile=compiled)
        trainer, began = Trainer(bench, run), time.perf_counter()
        for number in range(3):  # compiles
            trainer.step(number, deepest=deepest)
        first = time.perf_counter() - began
        flops, spent = 0.0, 0.0
        for number in range(3, 3 + bench.sizes.steps):
            seconds, executed = trainer.timed_step(number, deepest=deepest)
            spent, flops = spent + seconds, flops + executed
        counters = torch._dynamo.utils.counters
        rows.append(
            {
                "compiled": compiled,
                "sequences": "all to the deepest" if deepest else "active",
                "kernels": trainer.session.kernels,
                "tokens_per_s": bench.sizes.steps * run.batch_tokens / spent,
                **_utilisation(bench, run.model, flops / spent),
                "peak_gib": peak_memory_bytes(bench.device) / 2**30,
                "graphs": counters["stats"]["unique_graphs"],
                "recompiles": sum(counters["recompiles"].values()),
                "first_steps_s": first,
            }
        )
        del trainer
    return {"scale": bench.sizes.scale, "micro_batch": bench.sizes.batch, "rows": rows}


def _utilisation(bench: Bench, model: ModelConfig, flops_per_s: float) -> Figures:
    """Return the share of the peak in paper accounting, with causal attention, and that of the product."""
    mean = model.mean_recurrence, model.resolved_backprop_depth
    whole = flops_per_token(model, "paper").at(*mean)
    attention = whole - flops_per_token(replace(model, sequence_length=1), "paper").at(*mean)
    causal = 1 - attention / whole / 2
    return {
        "mfu_paper": flops_per_s / bench.peak,
        "mfu_causal": flops_per_s * causal / bench.peak,
        "share_of_product": flops_per_s / bench.measured,
    }


def loop(bench: Bench) -> Figures:
    """Time one loop through the core without gradient."""
    run = bench.run()
    trainer, rows = Trainer(bench, run), []
    model, width = trainer.model, run.model.width
    for active in bench.sizes.active:
        state = torch.randn(active, run.model.sequence_length, width, device=bench.device)
        tokens = torch.ones(state.shape[:2], dtype=torch.int64, device=bench.device)
        with torch.no_grad(), autocast(bench.device, "bfloat16"):
            x, context = model._embed(tokens)
            drive, carry = model.injection.prepare(model.prelude_norm(x))
            context = model._core_only(context)

            def once(state=state, drive=drive, carry=carry, context=context) -> None:  # type: ignore[no-untyped-def]
                model.loop_once(state, drive, carry, context)

            seconds = bench.best(once)
            began = time.perf_counter()
            once()
            host = time.perf_counter() - began
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        flops = flops_per_token(run.model, "paper").per_loop * state.shape[0] * state.shape[1]
        rows.append(
            {
                "active": active,
                "us": seconds * 1e6,
                "host_us": host * 1e6,
                "share_of_peak": flops / seconds / bench.peak,
            }
        )
    return {"scale": bench.sizes.scale, "rows": rows}


def kernels(bench: Bench) -> Figures:
    """Sum a step's kernels by kind."""
    trainer = Trainer(bench, bench.run())
    for number in range(3):
        trainer.step(number)
    optimizer = trainer.session.optimizer

    def update() -> None:
        optimizer.set_schedule(1.0, 1.0)
        optimizer.step()

    times, wall = bench.kernels(lambda: trainer.gradient(3))
    updates, update_wall = bench.kernels(update)
    shares = dict.fromkeys((*KINDS, "elementwise and others"), 0.0)
    for name, seconds in times.items():
        kind = next((k for k, parts in KINDS.items() if any(p in name.lower() for p in parts)), "")
        shares[kind or "elementwise and others"] += seconds
    shares["optimiser"] = sum(updates.values())
    whole, busy = wall + update_wall, sum(shares.values())
    return {
        "step_ms": whole * 1e3,
        "shares": {name: seconds / whole for name, seconds in shares.items()},
        "waiting": max(0.0, 1 - busy / whole),
        "slowest": [[name[:100], 1e3 * times[name]] for name in sorted(times, key=times.get)[:-16:-1]],  # type: ignore[arg-type]
    }


def memory(bench: Bench) -> Figures:
    """Compare the memory estimate with the peak."""
    rows = []
    for scale, batch in ((bench.sizes.scale, bench.sizes.batch), *bench.sizes.larger):
        forget_peak_memory(bench.device)
        run = bench.run(scale, batch_sequences=batch)
        trainer = Trainer(bench, run)
        for number in range(2):
            trainer.step(number)
        spent, _ = trainer.timed_step(2)
        peak = peak_memory_bytes(bench.device)
        estimate = memory_estimate_bytes(run.model, batch, precision="bfloat16").total
        rows.append(
            {
                "scale": scale,
                "micro_batch": batch,
                "estimate_gib": estimate / 2**30,
                "peak_gib": peak / 2**30,
                "estimate_over_peak": estimate / peak,
                "tokens_per_s": run.batch_tokens / spent,
            }
        )
        del trainer
    return {"rows": rows}


def resume(bench: Bench) -> Figures:
    """Compare six steps with three, a checkpoint, and three more, in deterministic mode."""
    rows = []
    for compiled in dict.fromkeys((bench.compiled, False)):
        demand_determinism(compiled=True)
        run = bench.run(compile=compiled)
        whole, broken = Trainer(bench, run), Trainer(bench, run)
        for number in range(6):
            whole.step(number)
        for number in range(3):
            broken.step(number)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            save(Path(folder), broken.session.checkpoint(3), keep=1)
            saved = time.perf_counter() - began
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            del broken
            again = Trainer(bench, run, seed=1)
            stored = open_newest(Path(folder), ALONE)
            assert stored is not None
            again.session.restore(stored)
            for number in range(3, 6):
                again.step(number)
        equal = all(map(torch.equal, whole.weights(), again.weights()))
        rows.append(
            {"compiled": compiled, "equal_bits": equal, "checkpoint_s": saved, "checkpoint_gb": size / 1e9}
        )
        del whole, again
    torch.use_deterministic_algorithms(False)
    torch.set_deterministic_debug_mode("default")
    return {"rows": rows}


def search(bench: Bench) -> Figures:
    """Search for the micro-batch in little memory, then compare a gradient with a fresh model's."""
    run = bench.run(compile=False, micro_batch=None)
    model = build_model(run.model, seed=0, device=bench.device)
    if bench.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.15)
    began = time.perf_counter()
    found = find_micro_batch(run, model, ALONE)
    seconds = time.perf_counter() - began
    if bench.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    grads = []
    for each in (model, build_model(run.model, seed=0, device=bench.device)):
        tokens = torch.arange(2 * run.model.sequence_length, device=bench.device).view(2, -1)
        tokens %= run.model.vocabulary_size
        with autocast(bench.device, "bfloat16"):
            each.loss(tokens, tokens, [3, 2], [0, 1]).backward()
        grads.append([p.grad for p in each.parameters() if p.grad is not None])
    gap = max(float((a - b).abs().max()) for a, b in zip(*grads, strict=True))
    return {"micro_batch": found, "seconds": seconds, "largest_difference": gap}


SECTIONS = (device, attention, precision, step, loop, kernels, memory, resume, search)


def table(lines: list[Figures]) -> str:
    """Return the rows of all sections as plain text, and the gap to the machine's own product."""
    texts = []
    for line in lines:
        rows = line.get("rows") or [{k: v for k, v in line.items() if k not in ("section", "seconds")}]
        texts.append(f"{line['section']} ({line['seconds']:.0f} s)")
        texts += ["  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()) for row in rows]
    best = [row for line in lines if line["section"] == "step" for row in line.get("rows", [])]
    if best:
        fastest = max(best, key=lambda row: row["tokens_per_s"])
        texts.append(
            f"fastest step: {fastest['tokens_per_s']:,.0f} tokens/s, {fastest['mfu_paper']:.1%} MFU (paper), "
            f"{1 - fastest['share_of_product']:.0%} below the speed of a square product"
        )
    return "\n".join(texts)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the sections in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", choices=[section.__name__ for section in SECTIONS])
    args = parser.parse_args()
    began, lines = time.monotonic(), []
    bench = Bench(TINY if args.tiny else Sizes(), compiled=not args.eager)
    for section in SECTIONS:
        if args.only and section.__name__ not in args.only:
            continue
        start = time.monotonic()
        if start - began > args.seconds:
            figures: Figures = {"left_out": f"{args.seconds:g} s are over"}
        else:
            try:
                figures = section(bench)
            except (RuntimeError, ValueError, AssertionError) as error:  # the next may still tell something
                figures = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
        line = {"section": section.__name__, **figures, "seconds": time.monotonic() - start}
        lines.append(line)
        print(json.dumps(line), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
    print(table(lines))
    if any("error" in line for line in lines) or not all(math.isfinite(line["seconds"]) for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
