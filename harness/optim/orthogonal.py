"""The nearest semi-orthogonal matrices, by matrix products alone."""

from __future__ import annotations

import torch
from torch import Tensor

# Polar Express (arXiv 2505.16932): odd quintics a x + b x³ + c x⁵, one per step, for singular values that
# were scaled down by 1.02 so that rounding cannot push them out of the interval of convergence.
_QUINTICS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_SAFETY = 1.02
_STRIP = 128  # rows of a symmetric product at once: fewer compute less twice, more keep the BLAS library busy


def polar_factor(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Pull all singular values of matrices [n, rows, columns] towards 1; the result has the given dtype."""
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * _SAFETY + 1e-6)
    tall = x.shape[-2] > x.shape[-1]
    for a, b, c in _QUINTICS[:steps]:
        gram = _gram(x.mT if tall else x)
        quintic = b * gram + c * _gram(gram)
        x = a * x + (x @ quintic if tall else quintic @ x)
    return x


def _gram(x: Tensor) -> Tensor:
    """Multiply x [n, rows, columns] by its own transpose; a CPU computes what is symmetric only once."""
    rows = x.shape[-2]
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows <= _STRIP:
        return x @ x.mT
    gram = x.new_empty(*x.shape[:-1], rows)
    for start in range(0, rows, _STRIP):
        end = min(start + _STRIP, rows)
        strip = x[..., start:end, :] @ x[..., :end, :].mT
        gram[..., start:end, :end] = strip
        gram[..., :start, start:end] = strip[..., :start].mT
    return gram
