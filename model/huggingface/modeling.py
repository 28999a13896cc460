"""The model as transformers' classes call it; what is computed stands in `model.cached_pass`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from model.cached_pass import CachedPass, NoCache
from model.depth import counter_seed
from model.huggingface.configuration import LoopscaleConfig
from model.layers import rotary_table
from model.prefix_scoring import state_table
from model.transformer import LoopedTransformer, build_model


class LoopscaleForCausalLM(PreTrainedModel, GenerationMixin):
    """A looped model or a plain transformer at one depth, `config.depth`, for all tokens.

    Every sequence starts from the same first states by position, as in `loopscale eval`. With labels, the
    gradient runs through all loops.
    """

    config_class = LoopscaleConfig
    base_model_prefix = "model"
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: LoopscaleConfig) -> None:
        super().__init__(config)
        self.model = LoopedTransformer(config.looped())
        self._states: tuple[int, Tensor] | None = None  # with their seed
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return the logits [B, n or logits_to_keep, V] of tokens [B, n], with labels the mean loss too.

        attention_mask [B, all tokens] is 0 at padding.

        Raises
        ------
        ValueError : more tokens than the context holds.
        """
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        seen = 0 if cache is None else cache.get_seq_length()
        self._check_length(seen, input_ids.shape[1])
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1], device=input_ids.device) + seen)[None]
        states = self._first_states()
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=states.new_empty(*input_ids.shape, 0),  # read for its batch, length and type
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
        )
        passing = CachedPass(
            model=self.model,
            decoding=self.config.decoding(self.model.config),
            rope=self.model.rope[position_ids],
            cache=NoCache() if cache is None else cache,
            mask=mask,
        )
        hidden, _ = passing.run(input_ids, states[position_ids])
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = F.linear(hidden[:, kept], self.model.embedding)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        result = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        return result.to_tuple() if return_dict is False else result

    def _check_length(self, seen: int | Tensor, new: int) -> None:
        context = self.config.max_position_embeddings
        if isinstance(seen, int) and seen + new > context:
            raise ValueError(f"{seen + new} tokens do not fit the model's context of {context}")

    def _first_states(self) -> Tensor:
        """Return h_0 [L, d] by position."""
        seed, like = self.config.state_seed, self.model.embedding
        if self._states is None or self._states[0] != seed or self._states[1].device != like.device:
            self._states = seed, state_table(self.model, counter_seed("options", seed))
        return self._states[1].to(like.dtype)

    def _init_weights(self, module: nn.Module) -> None:
        """Set what no checkpoint holds: rotary angles, and first weights of a model made from a config."""
        if not isinstance(module, LoopedTransformer):
            return
        config = module.config
        with torch.no_grad():
            module.rope.copy_(rotary_table(config.sequence_length, config.head_dim, config.rope_theta))
            new = {
                name: parameter
                for name, parameter in module.named_parameters()
                if not getattr(parameter, "_is_hf_initialized", False)
            }
            if new:
                drawn = build_model(config, seed=torch.initial_seed() % 2**31).state_dict()
                for name, parameter in new.items():
                    parameter.copy_(drawn[name])
