"""Time tokenisation against the tokenizers library alone, on the same documents and the same tokenizer.

    python benchmarks/tokenise.py                     # 100 MB of the embedded set, all cores
    python benchmarks/tokenise.py --text corpus/      # your own text: .txt, .jsonl, .parquet
    python benchmarks/tokenise.py --workers 1 --vocabulary 32768

"ours" is what `loopscale data` runs: documents to token ids in its worker processes, in order, with the start
of those processes. "library" is `Tokenizer.encode_batch_fast` of the documents on as many threads.
The two take turns; medians of the speeds and of the paired ratios are printed.
"""

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", help="a file or folder of text; default: the embedded set")
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def corpus(args):
    """Documents of about `megabytes`, those of the source over and over if it has less."""
    import yaml

    from harness.data.dataset import DataConfig
    from harness.data.documents import read_documents

    fields = {"name": "text", "source": "text", "path": args.text}
    if not args.text:
        conf = Path(__file__).resolve().parents[1] / "conf" / "data" / "installed_python.yaml"
        fields = yaml.safe_load(conf.read_text())
    left, chosen = args.megabytes * 1e6, []
    for document in itertools.cycle(list(read_documents(DataConfig(**fields), Counter()))):
        if left <= 0:
            return chosen
        chosen.append(document)
        left -= len(document.text.encode())


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main():
    args = arguments()
    os.environ["RAYON_NUM_THREADS"] = str(args.workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if args.workers > 1 else "false"
    import numpy as np
    from tokenizers import Tokenizer

    from harness.data.encoding import encode_documents
    from harness.data.tokenizer import Sample, train_tokenizer

    documents = corpus(args)
    sample = Sample(10_000_000, 10_000)
    for document in documents:
        sample.add(document.text)
    text = train_tokenizer(sample.texts(), args.vocabulary).to_str()
    texts = [document.text for document in documents]
    size = sum(len(text.encode()) for text in texts)
    library = Tokenizer.from_str(text)
    library.encode_special_tokens = True
    dtype = np.dtype("<u2" if args.vocabulary <= 2**16 else "<u4")

    def ours():
        for _document, _ids in encode_documents(documents, text, dtype, args.workers):
            pass

    def alone():
        for start in range(0, len(texts), 1024):
            library.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False)

    actions, times = {"ours": ours, "library": alone}, {"ours": [], "library": []}
    for repeat in range(args.repeats):
        for name in sorted(actions, reverse=bool(repeat % 2)):
            times[name].append(seconds(actions[name]))
    print(
        f"{size / 1e6:.0f} MB in {len(texts)} documents, {args.workers} workers, vocabulary {args.vocabulary}"
    )
    for name, taken in times.items():
        print(f"{name:8} {size / median(taken) / 1e6:7.1f} MB/s   ({', '.join(f'{t:.1f}' for t in taken)} s)")
    ratio = median(alone / ours for ours, alone in zip(times["ours"], times["library"], strict=True))
    print(f"ours / library, paired: {ratio:.2f}")


if __name__ == "__main__":
    main()
