"""The configuration of an export for transformers."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from model.config import ModelConfig
from model.config_validation import ConfigError, build
from model.decoding import Decoding
from model.published.transformers_layout import MODEL_TYPE, STATE_SEED


class LoopscaleConfig(PreTrainedConfig):
    """A model's own configuration, its test-time depth and the seed of its first states.

    `from_pretrained(folder, depth=8)` or `config.depth = 8` sets the depth; None is the mean recurrence.
    """

    model_type = MODEL_TYPE

    model: dict[str, Any] | None = None  # the fields of model.config.ModelConfig
    depth: int | None = None
    state_seed: int = STATE_SEED  # of h_0, by position; that of `loopscale eval`
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    def looped(self) -> ModelConfig:
        """Return the model's own configuration.

        Raises
        ------
        ConfigError : missing, or not that of a model.
        """
        if self.model is None:
            raise ConfigError(
                "LoopscaleConfig has no `model`: pass the fields of ModelConfig as a dictionary"
            )
        return build(ModelConfig, self.model)

    def decoding(self, model: ModelConfig) -> Decoding:
        """Return how tokens of this model are decoded."""
        return Decoding(depth=model.own_depth if self.depth is None else self.depth)

    # By the names under which transformers and tools over it ask.
    @property
    def num_hidden_layers(self) -> int:
        """Return the number of layers of keys and values, those inside the loop once per loop."""
        model = self.looped()
        return self.decoding(model).cached_layers(model)

    @property
    def vocab_size(self) -> int:
        """Return the number of logits."""
        return self.looped().vocabulary_size

    @property
    def hidden_size(self) -> int:
        """Return the width of the residual stream."""
        return self.looped().width

    @property
    def num_attention_heads(self) -> int:
        """Return the number of query heads."""
        return self.looped().heads

    @property
    def num_key_value_heads(self) -> int:
        """Return the number of key/value heads."""
        return self.looped().resolved_kv_heads

    @property
    def head_dim(self) -> int:
        """Return the number of channels of one head."""
        return self.looped().head_dim

    @property
    def max_position_embeddings(self) -> int:
        """Return the context in tokens."""
        return self.looped().sequence_length
