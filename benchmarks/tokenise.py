"""Time tokenisation against the tokenizers library alone, on the same documents and the same tokenizer.

    python benchmarks/tokenise.py                     # 100 MB of the embedded set, all cores
    python benchmarks/tokenise.py --text corpus/      # your own text: .txt, .jsonl, .parquet
    python benchmarks/tokenise.py --workers 1 --vocabulary 32768

"ours" is what `loopscale data` runs: documents to token ids in its worker processes, in order, with the start
of those processes. "library" is `Tokenizer.encode_batch_fast` of the documents on as many threads;
"tiktoken", where it is installed, its `encode_ordinary_batch` with the same merges. They take turns; medians
of the speeds and of the paired ratios are printed, by the clock and by CPU seconds, which depend
less on other work on the machine; --result keeps them.
"""

import argparse
import itertools
import json
import os
import resource
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
    parser.add_argument("--result", type=Path, help="a JSON file for what is printed")
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


def tiktoken_encoding(tokenizer):
    """The tokenizer as tiktoken's, whose ids lack the special tokens before them; None without tiktoken."""
    try:
        import tiktoken
    except ImportError:
        return None
    from tokenizers.pre_tokenizers import ByteLevel

    from harness.data.tokenizer import PATTERN, SPECIAL_TOKENS

    # GPT-2's table of bytes: printable ones stand for themselves, the others for what follows 255.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert set(byte_of) == set(ByteLevel.alphabet())
    first = len(SPECIAL_TOKENS)
    ranks = {
        bytes(map(byte_of.__getitem__, token)): rank - first
        for token, rank in tokenizer.get_vocab(with_added_tokens=False).items()
        if token not in SPECIAL_TOKENS
    }
    return tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def cpu_seconds():
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def seconds(action):
    """Seconds by the clock and of the CPU."""
    start, cpu = time.perf_counter(), cpu_seconds()
    action()
    return time.perf_counter() - start, cpu_seconds() - cpu


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

    actions = {"ours": ours, "library": alone}
    if (encoding := tiktoken_encoding(library)) is not None:
        from harness.data.tokenizer import SPECIAL_TOKENS

        for some in texts[:200]:  # the same ids
            ids = library.encode(some, add_special_tokens=False).ids
            assert [one + len(SPECIAL_TOKENS) for one in encoding.encode_ordinary(some)] == ids

        def theirs():
            for start in range(0, len(texts), 1024):
                encoding.encode_ordinary_batch(texts[start : start + 1024], num_threads=args.workers)

        actions["tiktoken"] = theirs
    times = {name: [] for name in actions}
    for repeat in range(args.repeats):
        for name in sorted(actions, reverse=bool(repeat % 2)):
            times[name].append(seconds(actions[name]))
    print(
        f"{size / 1e6:.0f} MB in {len(texts)} documents, {args.workers} workers, vocabulary {args.vocabulary}"
    )
    rows = {}
    for name, taken in times.items():
        clock, cpu = zip(*taken, strict=True)
        speed = size / median(clock) / 1e6
        print(f"{name:8} {speed:7.1f} MB/s   ({', '.join(f'{t:.1f}' for t in clock)} s)")
        pairs = list(zip(times["ours"], taken, strict=True))
        rows[name] = {
            "seconds": [round(value, 2) for value in clock],
            "cpu_seconds": [round(value, 2) for value in cpu],
            "speed_of_ours": round(median(other[0] / ours[0] for ours, other in pairs), 3),
            "speed_of_ours_by_cpu": round(median(other[1] / ours[1] for ours, other in pairs), 3),
        }
        if name != "ours":
            print(
                f"ours / {name}, paired: {rows[name]['speed_of_ours']:.2f}, "
                f"by CPU seconds {rows[name]['speed_of_ours_by_cpu']:.2f}"
            )
    if args.result:
        command = (
            f"python benchmarks/tokenise.py --megabytes {args.megabytes:g} --vocabulary {args.vocabulary}"
        )
        command += f" --workers {args.workers} --repeats {args.repeats}"
        shown = {"command": command, "bytes": size, "documents": len(texts), "rows": rows}
        args.result.write_text(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    main()
