"""The model that lm-evaluation-harness sees.

Run as `python -m harness.evaluation.lm_eval_model --model loopscale ...`.

lm_eval finds models in its own registry alone, so this module registers ours and hands its arguments over.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.evaluation.prompts import FEWSHOT_SEED, Scored
from harness.evaluation.scoring import score_options
from harness.evaluation.subject import load_subject
from model.config_validation import ConfigError, closest
from model.depth import counter_seed
from model.generate import stream_tokens

NEW_TOKENS = 256  # where a task does not say how many it generates
ARGUMENTS = ("path", "depth", "cache", "seed", "device", "token_budget")


@register_model("loopscale")
class LoopscaleLM(TemplateLM):
    """A run folder, an export or a published checkpoint, at one test-time depth.

    `--model_args path=FOLDER,depth=8,cache=runs/.data,seed=1234`. depth is the mean recurrence unless set;
    seed is that of h_0. Requests of one context share it, computed once.
    """

    def __init__(
        self,
        path: str,
        depth: int | None = None,
        cache: str = "runs/.data",
        seed: int = FEWSHOT_SEED,
        device: str | None = None,
        token_budget: int | None = None,
        batch_size: int
        | str
        | None = None,  # of lm_eval, as the two after it: batches are made by tokens here
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,  # which lm_eval hands to every model
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise ConfigError(f"unknown model argument {name}{closest(name, ARGUMENTS)}")
        self._subject = load_subject(Path(path), Path(cache), device="auto" if device is None else device)
        self._depth = self._subject.own_depth if depth is None else int(depth)
        self._seed, self._token_budget = int(seed), token_budget

    @property
    def eot_token_id(self) -> int:
        """Return the token that documents begin with; ours end where the next one begins."""
        return self._subject.bos

    @property
    def max_length(self) -> int:
        """Return the context in tokens."""
        return self._subject.model.config.sequence_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_more: Any) -> list[int]:
        """Return the ids of a text, the first token of documents before them unless that is declined."""
        ids = list(self._subject.tokenizer.encode(string, add_special_tokens=False).ids)
        return ids if add_special_tokens is False else [self._subject.bos, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_more: Any
    ) -> list[tuple[float, bool]]:
        """Return log-probability and greediness of each request (text, context ids, continuation ids)."""
        sequences = [[self._scored(context, continuation)] for _, context, continuation in requests]
        scores = score_options(
            self._subject.model,
            sequences,
            [self._depth],
            seed=self._seed,
            token_budget=self._token_budget,
        )
        sums = np.nan_to_num(-scores.nats[0, :, 0])  # an empty continuation has probability 1
        empty = scores.tokens[:, 0] == 0
        return [(float(s), bool(e)) for s, e in zip(sums, scores.exact[0, :, 0] | empty, strict=True)]

    def _scored(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        ids = np.array([*context, *continuation], np.int32)
        lost = max(0, len(ids) - self.max_length - 1)  # the last token is predicted, not read
        return Scored(ids[lost:], max(1, len(context) - lost), lost > 0)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of whole texts, cut into windows of the context."""
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
        """Return greedy continuations, each cut before the first of its stop texts and where a document ends.

        Where prompt and continuation outgrow the context, the prompt's first token and its end are kept, the
        end as far as the continuation leaves room and in at least half of the context.
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
            self._subject.model,
            torch.tensor([prompt], device=self._subject.model.embedding.device),
            new_tokens=new,
            depth=self._depth,
            state_seeds=[counter_seed("options", self._seed)],
        ):
            if int(token[0]) == self._subject.bos:  # the next document
                break
            ids.append(int(token[0]))
            text = self._subject.tokenizer.decode(ids, skip_special_tokens=True)
            found = [text.index(stop) for stop in stops if stop in text]
            if found:
                return text[: min(found)]
        return text

    def _fitted(self, prompt: list[int], new: int) -> tuple[list[int], int]:
        """Return a prompt and a number of new tokens that fit the context together."""
        if len(prompt) + new <= self.max_length:
            return prompt, new
        room = max(self.max_length - new, self.max_length // 2)
        if len(prompt) > room:
            prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
        warnings.warn(
            f"max_gen_toks={new}: some prompts lose their beginning or get fewer new tokens, "
            f"the context is {self.max_length}",
            stacklevel=2,
        )
        return prompt, self.max_length - len(prompt)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ConfigError as error:
        sys.exit(f"loopscale: {error}")
