"""The share of the step's time that training waits for data, and how full its sequences are.

    python benchmarks/loader.py                    # the embedded set, a small model, 60 steps at each length
    python benchmarks/loader.py --cache runs/.data --steps 200 --threads 1

Trains on the prepared data with packing=best_fit and packing=blocks as `loopscale train` does.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", default="runs/.data")
    parser.add_argument("--model", default="looped_150k")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--tokens", type=int, default=4096, help="in one step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def real_share(rows):
    """Share of all slots that hold tokens of the documents, repeated <|bos|> and padding left out."""
    packing = rows.rows._packing
    return packing.real_share(), len(rows.rows)


def main():
    args = arguments()
    import loopscale
    from harness.data.loader import training_rows
    from harness.data.prepare import prepare
    from harness.run.folder import create
    from harness.run.length import solve
    from harness.training.train import train

    for length in args.lengths:
        for packing in ("best_fit", "blocks"):
            overrides = [
                f"model={args.model}",
                f"model.sequence_length={length}",
                f"training.batch_sequences={max(1, args.tokens // length)}",
                f"training.packing={packing}",
                f"training.threads={args.threads}",
                f"steps={args.steps}",
                "evaluation.blocks=2",
                "evaluation.max_depth=1",
                f"cache={args.cache}",
            ]
            run = solve(next(iter(loopscale.compose(overrides).runs.values())))
            dataset = prepare(run.data, Path(args.cache))
            with tempfile.TemporaryDirectory() as folder:
                made = create(
                    Path(folder), run, data_digest=dataset.digest, unique_tokens=dataset.unique_tokens
                )
                train(made, dataset, attempts=1)
                record = made.record()
            step_s = record["tokens"] / record["tokens_per_s"]
            told = f"{length:5} {packing:9} waited {record['data_wait_share']:7.3%} of {step_s:.1f} s"
            if packing == "best_fit":
                rows = training_rows(
                    dataset, packing="best_fit", seed=0, batch_sequences=1, sequence_length=length
                )
                share, count = real_share(rows)
                cut = np.diff(rows.rows._packing.rows).mean()
                told += f", {share:.4%} real tokens in {count:,} sequences of {cut:.2f} pieces"
            print(told, flush=True)


if __name__ == "__main__":
    main()
