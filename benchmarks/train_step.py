"""Time a training step against the masked form and against the machine's own matrix products.

    python benchmarks/train_step.py                        # width 128, 16 x 256 tokens, 2 threads, compiled
    python benchmarks/train_step.py --batch 32 --eager
    python benchmarks/train_step.py --beside 2 --threads 1  # as a sweep runs them: processes side by side
    python benchmarks/train_step.py --torch                # beside blocks of torch's operators, compiled
    python benchmarks/train_step.py --memory

Every repeat times all forms on the same draw of depths, in alternating order; medians are printed. Ours goes
through the batch as a run on a CPU does, in micro-batches sorted by depth; the masked form takes all at once,
as published, or micro-batches too with --masked-parts. The limit is the step of torch's operators without all
that is not a matrix product or attention: the same calls, alone.
"""

import argparse
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.optim.parameter_groups import build_optimizer
from harness.run.config import OptimizerConfig
from harness.training.micro_batch import largest_fitting, suits_cpu
from model.config import ModelConfig
from model.depth import draw_depths, expected_depths
from model.flops import flops_per_token
from model.kernels import AUTO, Workload, compile_blocks, keep_freed_memory
from model.kernels.cpu import CpuKernels
from model.transformer import LoopedTransformer, build_model
from tests.model.masked import masked_loss


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2, help="of prelude, core and coda each")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--recurrence", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--micro-batch", type=int, help="sequences at once; by default what a run takes")
    parser.add_argument("--masked-parts", action="store_true", help="micro-batches for the masked form too")
    parser.add_argument("--unmasked", action="store_true", help="leave the masked form out")
    parser.add_argument("--torch", action="store_true", help="time blocks of torch's operators too")
    parser.add_argument("--beside", type=int, default=0, help="run this many such processes at once")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as a run does
    if args.micro_batch is None:
        tokens = AUTO.tokens_at_once(Workload(config=configured(args), device="cpu"))
        args.micro_batch = largest_fitting(args.batch, lambda size: suits_cpu(size, args.sequence, tokens))
    return args


def configured(args, backprop_depth=None):
    return ModelConfig(
        width=args.width,
        heads=args.heads,
        prelude_layers=args.layers,
        core_layers=args.layers,
        coda_layers=args.layers,
        vocabulary_size=args.vocabulary,
        sequence_length=args.sequence,
        mean_recurrence=args.recurrence,
        backprop_depth=backprop_depth,
    )


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def matmul_rate():
    a, b = torch.randn(2, 2048, 2048)
    torch.mm(a, b)
    return 2 * 2048**3 / median(seconds(lambda: torch.mm(a, b)) for _ in range(5))


class Products(TorchDispatchMode):
    """Keep the arguments of every matrix product and attention call, by operator and shapes, with a count."""

    def __init__(self):
        super().__init__()
        self.calls, self.counts = {}, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("aten::mm", "aten::addmm", "aten::bmm") or "attention" in name:
            shapes = tuple((a.shape, a.stride()) for a in args if isinstance(a, torch.Tensor))
            key = name, shapes
            self.calls.setdefault(key, (func, args, kwargs or {}))
            self.counts[key] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self):
        """Return how long all calls take, one after the other, with warm arguments."""
        total = 0.0
        for key, (func, args, kwargs) in self.calls.items():
            func(*args, **kwargs)
            once = median(
                seconds(lambda func=func, args=args, kwargs=kwargs: func(*args, **kwargs)) for _ in range(5)
            )
            total += self.counts[key] * once
        return total


def backward(model, loss, tokens, depths, size):
    """Leave the gradient of the batch's loss in the parameters, `size` sequences at a time, deepest first."""
    order = sorted(range(len(depths)), key=lambda index: -depths[index])
    for start in range(0, len(order), size):
        part = order[start : start + size]
        nats = loss(model, tokens[part], tokens[part], [depths[index] for index in part], part)
        (nats * (len(part) / len(order))).backward()


class TorchBlocks(CpuKernels):
    """Let torch compute the blocks, as where no kernel takes them; attention and cross-entropy stay."""

    def is_one_operator(self, *_):
        return False


def limit(config, args, draws):
    """Return the median seconds of a step's matrix products and attention alone."""
    model = build_model(config, seed=0, kernels=TorchBlocks())
    tokens = torch.randint(args.vocabulary, (args.batch, args.sequence))
    found = []
    for depths in draws:
        with Products() as products:
            backward(model, LoopedTransformer.loss, tokens, depths, args.micro_batch)
        with torch.no_grad():
            found.append(products.seconds())
    return median(found)


def time_steps(args):
    config = configured(args)
    tokens = torch.randint(args.vocabulary, (args.batch, args.sequence))

    def stepper(loss, size, kernels=AUTO):
        model = build_model(config, seed=0, kernels=kernels)
        optimizer = build_optimizer(model, OptimizerConfig())
        if not args.eager:
            compile_blocks(model.all_blocks(), largest_batch=args.batch)

        def step(depths):
            model.zero_grad()
            backward(model, loss, tokens, depths, size)
            optimizer.step()

        return step

    steps = {"ours": stepper(LoopedTransformer.loss, args.micro_batch)}
    if not args.unmasked:
        steps["masked"] = stepper(masked_loss, args.micro_batch if args.masked_parts else args.batch)
    if args.torch:
        steps["torch"] = stepper(LoopedTransformer.loss, args.micro_batch, TorchBlocks())
    draws = [draw_depths(config, seed=0, step=i, batch=args.batch).tolist() for i in range(args.repeats)]
    for step in steps.values():
        step(draws[0])
    times = {name: [] for name in steps}
    rates = []
    for repeat, depths in enumerate(draws):
        for name in sorted(steps, reverse=bool(repeat % 2)):
            times[name].append(seconds(lambda name=name, depths=depths: steps[name](depths)))
        rates.append(matmul_rate())
    report(args, config, times | {"limit": [limit(config, args, draws[:3])]}, median(rates))


def report(args, config, times, rate):
    tokens = args.batch * args.sequence
    # What must be spent: matrix products, and attention over half the square that causality leaves.
    causal = replace(config, sequence_length=args.sequence // 2)
    needed = flops_per_token(causal, "paper").at(*expected_depths(config))
    for name, measured in times.items():
        speed = tokens / median(measured)
        print(f"{name:7} {speed:9.0f} tokens/s  {needed * speed / rate:6.1%} of the matmul rate")
    for name in ("masked", "torch"):
        if name not in times:
            continue
        ratio = median(other / own for own, other in zip(times["ours"], times[name], strict=True))
        print(f"{name} / ours, paired: {ratio:.2f}")
    print(
        f"{needed / 1e6:.1f} MFLOP/token, 2048^3 matmul {rate / 1e9:.0f} GFLOP/s, {args.threads} threads, "
        f"{args.micro_batch} of {args.batch} sequences at once"
    )


def run_beside(args):
    own = list(sys.argv[1:])
    at = own.index("--beside")
    command = [sys.executable, __file__, *own[:at], *own[at + 2 :], "--unmasked"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(args.beside)]
    for process in processes:
        print(process.communicate()[0], end="")


def peak_mib(args, without, backprop_depth):
    """Measure the peak resident memory of one forward and backward pass above the built model's."""
    config = configured(args, backprop_depth)
    model = build_model(config, seed=0)
    tokens = torch.zeros(args.batch, args.sequence, dtype=torch.int64)
    model.loss(tokens[:1, :8], tokens[:1, :8], [1], [0]).backward()
    before = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    depths = [without + backprop_depth] * args.batch
    model.loss(tokens, tokens, depths, range(args.batch)).backward()
    return status_mib("VmHWM") - before


def status_mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure_memory(args):
    context = multiprocessing.get_context("spawn")
    for without, with_gradient in [(0, 1), (0, 4), (8, 4), (16, 4), (0, 8)]:
        with context.Pool(1) as pool:
            peak = pool.apply(peak_mib, (args, without, with_gradient))
        print(f"{without:2} loops without, {with_gradient} with gradient: {peak:5.0f} MiB over the model")


if __name__ == "__main__":
    parsed = arguments()
    if parsed.memory:
        measure_memory(parsed)
    elif parsed.beside:
        run_beside(parsed)
    else:
        time_steps(parsed)
