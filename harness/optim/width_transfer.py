"""How peak learning rates move with the model's width; imports no torch."""

from __future__ import annotations

from harness.run.config import OptimizerConfig


def rate_multiplier(name: str, dimensions: int, width: int, config: OptimizerConfig) -> float:
    """Give the factor on the peak rate of an AdamW parameter in a model of `width`.

    none: 1. mup_width, with s = lr_base_width / width and rates tuned at lr_base_width: hidden matrices s, as
    in Tensor Programs V (arXiv 2203.03466, table 3); vectors and value-embedding tables, whose inputs are
    one-hot, 1; the tied embedding √s, between its two roles (input 1, output s), which is how the published
    rates move (8e-3 at 768 and 1024, 6e-3 at 1280 and 1536). Muon's updates have a spectral norm that does
    not depend on the width, so its rate never moves (arXiv 2502.16982 scales it by shape alone).
    """
    if config.lr_scaling == "none" or dimensions < 2 or name.startswith("value_tables."):
        return 1.0
    assert config.lr_base_width is not None, "checked with the configuration"
    scale = config.lr_base_width / width
    return float(scale**0.5) if name == "embedding" else scale
