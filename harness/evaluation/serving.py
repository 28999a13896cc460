"""What a model costs to serve on a device: bytes, and tokens per second of reading and of writing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from harness.training.device import forget_peak_memory, memory_bytes, peak_memory_bytes
from model.config_validation import ConfigError
from model.decoding import Decoding, kv_bytes_per_token
from model.generate import Decoder
from model.transformer import LoopedTransformer

WARM_UP = 1  # repeats that are not counted


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests served together: a batch of prompts of one length, each continued by new tokens."""

    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class ServingSpeed:
    """Medians over repeats with their least and largest value, in tokens per second of the whole batch.

    `kv_cache_bytes` is what the cache allocated. `peak_memory_bytes` is of the device, on a CPU of the
    process since its start.
    """

    prefill_tokens_per_s: float
    prefill_low: float
    prefill_high: float
    decode_tokens_per_s: float
    decode_low: float
    decode_high: float
    kv_cache_bytes: int
    peak_memory_bytes: int


def weights_bytes(model: LoopedTransformer) -> int:
    """Return the bytes of the parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def measure_serving(
    model: LoopedTransformer, decoding: Decoding, traffic: Traffic, *, repeats: int
) -> ServingSpeed:
    """Time reading the prompts and writing the new tokens greedily, after a warm-up.

    Raises
    ------
    ConfigError : prompt and new tokens do not fit the model's context, or their cache the memory.
    """
    length, device = traffic.prompt_tokens + traffic.new_tokens, model.embedding.device
    _check_fits(model, decoding, traffic)
    forget_peak_memory(device)
    prompts = torch.randint(
        model.config.vocabulary_size,
        (traffic.batch, traffic.prompt_tokens),
        generator=torch.Generator().manual_seed(0),
    ).to(device)
    read, written, cache_bytes = [], [], 0
    for _ in range(WARM_UP + repeats):
        decoder = Decoder(
            model, decoding, batch=traffic.batch, length=length, state_seeds=range(traffic.batch)
        )
        cache_bytes = decoder.cache.size_bytes
        start = _now(device)
        logits, _ = decoder.read(prompts)
        between = _now(device)
        for _ in range(traffic.new_tokens):
            logits, _ = decoder.read(logits.argmax(dim=1, keepdim=True))
        end = _now(device)
        read.append(traffic.batch * traffic.prompt_tokens / (between - start))
        written.append(traffic.batch * traffic.new_tokens / (end - between))
    prefill, decode = (np.array(rates[WARM_UP:]) for rates in (read, written))
    return ServingSpeed(
        prefill_tokens_per_s=float(np.median(prefill)),
        prefill_low=float(prefill.min()),
        prefill_high=float(prefill.max()),
        decode_tokens_per_s=float(np.median(decode)),
        decode_low=float(decode.min()),
        decode_high=float(decode.max()),
        kv_cache_bytes=cache_bytes,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def _check_fits(model: LoopedTransformer, decoding: Decoding, traffic: Traffic) -> None:
    length, config = traffic.prompt_tokens + traffic.new_tokens, model.config
    if length > config.sequence_length:
        raise ConfigError(
            f"prompts of {traffic.prompt_tokens} and {traffic.new_tokens} new tokens do not fit the context "
            f"of {config.sequence_length}: set prompts and tokens"
        )
    element = model.embedding.element_size()
    needed = traffic.batch * length * kv_bytes_per_token(config, decoding, element_bytes=element)
    room = memory_bytes(model.embedding.device)
    if needed > room:
        raise ConfigError(
            f"batches={traffic.batch}: {decoding.depth} loops of {length} tokens keep {needed / 2**30:.3g} "
            f"GiB of keys and values, {room / 2**30:.3g} GiB are there; serve fewer sequences or loops"
        )


def _now(device: torch.device) -> float:
    """Return the time in seconds once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
