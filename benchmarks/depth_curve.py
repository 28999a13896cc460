"""Time the loss at every depth T = 1..16 from one pass through the loop against one forward pass per depth.

    python benchmarks/depth_curve.py

Both are timed in turn on the same batch; the medians' ratio and the largest difference of losses are printed.
"""

import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config import ModelConfig
from model.kernels import keep_freed_memory
from model.transformer import build_model

THREADS, REPEATS, DEEPEST, BATCH = 2, 7, 16, 16
CONFIG = ModelConfig(
    width=128,
    heads=4,
    prelude_layers=2,
    core_layers=2,
    coda_layers=2,
    vocabulary_size=1024,
    sequence_length=256,
)


def main():
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as a run does
    model = build_model(CONFIG, seed=0)
    with torch.no_grad():  # away from the start, where every block is the identity
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    tokens = torch.randint(CONFIG.vocabulary_size, (BATCH, CONFIG.sequence_length))
    labels, seeds = tokens.roll(-1, dims=1), range(BATCH)

    def one_pass():
        return model.depth_losses(tokens, labels, DEEPEST, seeds).sum(dim=1)

    @torch.no_grad()
    def one_per_depth():
        depths = range(1, DEEPEST + 1)
        return torch.stack([model.loss(tokens, labels, [t] * BATCH, seeds, reduction="sum") for t in depths])

    times = {one_pass: [], one_per_depth: []}
    for repeat in range(REPEATS + 1):
        losses = {}
        for form in (one_pass, one_per_depth) if repeat % 2 else (one_per_depth, one_pass):
            start = time.perf_counter()
            losses[form] = form()
            times[form].append(time.perf_counter() - start)
    ratio = median(b / a for a, b in zip(times[one_pass][1:], times[one_per_depth][1:], strict=True))
    difference = ((losses[one_pass] - losses[one_per_depth]) / losses[one_per_depth]).abs().max().item()
    print(f"one pass {median(times[one_pass]):.2f} s, one per depth {median(times[one_per_depth]):.2f} s")
    print(f"paired ratio {ratio:.1f}, losses differ by at most {difference:.1e} of their size")


if __name__ == "__main__":
    main()
