"""Encoding of documents: each word is encoded once and then looked up; large data uses all cores."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np

from harness.data.documents import Document
from harness.data.tokenizer import BOS, splits_like_ours

# The tokenizer's pattern on ASCII text, where Python's own `re` can say it.
ASCII_WORD = re.compile(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\nA-Za-z0-9]?+[A-Za-z]+|[0-9]{1,3}"
    r"| ?[^\sA-Za-z0-9]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    re.ASCII,
)
# Start of a line with text. No match extends over it: blanks up to the last line end are one match, and
# words, numbers and signs end before a line end.
LINE_START = re.compile(r"(?<=\n)(?=[^\S\r\n]*+\S)")
CACHED_WORDS = 1_000_000
CHUNK_DOCUMENTS, CHUNK_CHARACTERS = 128, 1_000_000  # sent to a worker at once
PARENT_POLL_S = 0.5


class _Words(dict[str, bytes]):
    """Cache of the token ids of each word."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = self[word] = self._encode(word)
        return ids


class Encoder:
    """Encoder of texts to <|bos|> and token ids, as the bytes of a little-endian array of `dtype`.

    Words repeat, so looking up their ids is several times faster than the tokenizer. An existing tokenizer
    that splits words differently encodes whole texts. Special tokens written out in a text stay text.
    """

    def __init__(self, tokenizer_json: str, dtype: np.dtype, bos: int = BOS) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self._dtype = dtype
        self._bos = np.array([bos], dtype).tobytes()
        self._by_word = splits_like_ours(tokenizer_json)
        self._words = _Words(self._encode)

    def __call__(self, text: str) -> bytes:
        """Return the ids of <|bos|> and `text`."""
        if len(self._words) > CACHED_WORDS:
            self._words.clear()
        if not self._by_word:
            return self._bos + self._encode(text)
        pieces = [text] if text.isascii() else LINE_START.split(text)
        return self._bos + b"".join(map(self._encode_piece, pieces))

    def _encode_piece(self, text: str) -> bytes:
        if not text.isascii():
            return self._encode(text)
        return b"".join(map(self._words.__getitem__, ASCII_WORD.findall(text)))

    def _encode(self, text: str) -> bytes:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, self._dtype).tobytes()


def encode_documents(
    documents: Iterable[Document], tokenizer_json: str, dtype: np.dtype, workers: int, bos: int = BOS
) -> Generator[tuple[Document, bytes], None, None]:
    """Yield each document with its ids, in order; several workers are separate processes."""
    if workers == 1:
        encode = Encoder(tokenizer_json, dtype, bos)
        for document in documents:
            yield document, encode(document.text)
        return
    # Spawned: a fork of a process that holds threads (of torch, of tokenizers) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer_json, dtype, bos)) as pool:
        running: deque[tuple[list[Document], Future[list[bytes]]]] = deque()
        for chunk in _chunks(documents):
            running.append((chunk, pool.submit(_encode_chunk, [document.text for document in chunk])))
            if len(running) > 2 * workers:
                yield from _finished(running)
        while running:
            yield from _finished(running)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if len(chunk) == CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finished(
    running: deque[tuple[list[Document], Future[list[bytes]]]],
) -> Iterator[tuple[Document, bytes]]:
    chunk, future = running.popleft()
    return zip(chunk, future.result(), strict=True)


_encoder: Encoder | None = None  # of a worker process


def _start_worker(tokenizer_json: str, dtype: np.dtype, bos: int) -> None:
    global _encoder
    end_with_parent()
    _encoder = Encoder(tokenizer_json, dtype, bos)


def end_with_parent() -> None:
    """Let this worker of a pool end when its parent is killed, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # A worker waits on a queue that it holds open itself and would survive a parent that is killed.
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


def _encode_chunk(texts: list[str]) -> list[bytes]:
    assert _encoder is not None
    return [_encoder(text) for text in texts]
