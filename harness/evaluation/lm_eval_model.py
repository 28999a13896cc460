"""Adapter for lm-evaluation-harness: `python -m harness.evaluation.lm_eval_model --model loopscale ...`.

lm_eval looks models up in its own registry, so this module registers one and runs lm_eval's command line.
With `--model hf` that command line takes exports for transformers.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  registers lm_eval's own, left out once another model is registered
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.evaluation.prompts import FEWSHOT_SEED, Scored
from harness.evaluation.scoring import score_options
from harness.evaluation.weights import load_tokenized
from model.config_validation import ConfigError, closest
from model.decoding import Decoding
from model.depth import counter_seed
from model.generate import stream_tokens
from model.huggingface.registration import register_with_transformers

NEW_TOKENS = 256  # where a task sets no max_gen_toks
register_with_transformers()  # for `--model hf` on an export for transformers
ARGUMENTS = ("path", "depth", "cache", "seed", "device", "token_budget")


@register_model("loopscale")
class LoopscaleLM(TemplateLM):
    """A run folder, an export or a published checkpoint, at one test-time depth.

    Parameters
    ----------
    path, cache : folder of the model, and of the data sets of runs.
    depth : number of loops; by default the mean recurrence.
    seed : of h_0.
    token_budget : padded tokens of one batch.

    Notes
    -----
    Set from `--model_args path=FOLDER,depth=8,cache=runs/.data,seed=1234`. Requests with the same context
    compute it once.
    """

    def __init__(
        self,
        path: str,
        depth: int | None = None,
        cache: str = "runs/.data",
        seed: int = FEWSHOT_SEED,
        device: str | None = None,
        token_budget: int | None = None,
        # Passed by lm_eval to every model and ignored: batches are bounded by tokens here.
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise ConfigError(f"unknown model argument {name}{closest(name, ARGUMENTS)}")
        self._loaded = load_tokenized(Path(path), Path(cache), device="auto" if device is None else device)
        self._depth = self._loaded.own_depth if depth is None else int(depth)
        self._seed, self._token_budget = int(seed), token_budget

    @property
    def eot_token_id(self) -> int:
        """Return the token that begins a document, which also ends the one before."""
        return self._loaded.bos

    @property
    def max_length(self) -> int:
        """Return the context in tokens."""
        return self._loaded.model.config.sequence_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_more: Any) -> list[int]:
        """Return the token ids of a text, after the beginning-of-document token unless that is declined."""
        ids = list(self._loaded.tokenizer.encode(string, add_special_tokens=False).ids)
        return ids if add_special_tokens is False else [self._loaded.bos, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_more: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each request's continuation, and whether it is the greedy one."""
        sequences = [[self._scored(context, continuation)] for _, context, continuation in requests]
        scores = score_options(
            self._loaded.model,
            sequences,
            [self._depth],
            seed=self._seed,
            token_budget=self._token_budget,
        )
        sums = np.nan_to_num(-scores.nats[0, :, 0])  # an empty continuation has log-probability 0
        empty = scores.tokens[:, 0] == 0
        return [(float(s), bool(e)) for s, e in zip(sums, scores.exact[0, :, 0] | empty, strict=True)]

    def _scored(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        ids = np.array([*context, *continuation], np.int32)
        lost = max(0, len(ids) - self.max_length - 1)  # the last token is a target only
        return Scored(ids[lost:], max(1, len(context) - lost), lost > 0)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of whole texts, computed in windows of the context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            pairs = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, pairs):
                windows.append((None, context, continuation))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[number] += log_p
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, each up to its first stop text or the end of the document.

        Notes
        -----
        A prompt that does not fit the context with its continuation keeps its first token and its last
        tokens, at least half of the context.
        """
        return [self._generated(*request.args) for request in requests]

    def _generated(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature"):
            raise ValueError("loopscale generates greedily in lm_eval: set do_sample=false, temperature=0")
        prompt, new = self._fitted(self.tok_encode(context), int(options.get("max_gen_toks", NEW_TOKENS)))
        stops: Iterable[str] = options.get("until") or ()
        stops = [stops] if isinstance(stops, str) else list(stops)
        ids, text = [], ""
        for token in stream_tokens(
            self._loaded.model,
            torch.tensor([prompt], device=self._loaded.model.embedding.device),
            new_tokens=new,
            decoding=Decoding(depth=self._depth),
            state_seeds=[counter_seed("options", self._seed)],
        ):
            if int(token[0]) == self._loaded.bos:  # the next document
                break
            ids.append(int(token[0]))
            text = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
            ends = [text.index(stop) for stop in stops if stop in text]
            if ends:
                return text[: min(ends)]
        return text

    def _fitted(self, prompt: list[int], new: int) -> tuple[list[int], int]:
        """Return a prompt and a number of new tokens that fit the context together, with a warning if cut."""
        if len(prompt) + new <= self.max_length:
            return prompt, new
        room = max(self.max_length - new, self.max_length // 2)
        if len(prompt) > room:
            prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
        warnings.warn(
            f"max_gen_toks={new}: some prompts lose their first tokens or get fewer new tokens, "
            f"because the context is {self.max_length}",
            stacklevel=2,
        )
        return prompt, self.max_length - len(prompt)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ConfigError as error:
        sys.exit(f"loopscale: {error}")
