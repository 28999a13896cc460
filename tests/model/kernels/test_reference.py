import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from model.kernels.functional import _rotate_plainly, half_squared_relu, rms_norm, rotated_norm
from model.layers import rotary_table

torch.set_num_threads(1)


def normal(*shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.requires_grad_()


def test_rms_norm_and_its_gradients():
    x, weight = normal(2, 3, 6), normal(6)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), F.rms_norm(x, (6,), weight, 1e-5))
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-2), (x, weight))


def test_rotated_norm_and_its_gradient():
    x, rope = normal(2, 5, 3, 4), rotary_table(5, 4, 50.0).double()
    plain = F.rms_norm(_rotate_plainly(x, rope), (4,))
    torch.testing.assert_close(rotated_norm(x, rope), plain)
    assert gradcheck(rotated_norm, (x, rope))


def test_rotated_norm_in_bfloat16_is_that_of_float32():
    """Of small inputs too, whose mean square is near the epsilon of bfloat16."""
    x = (0.1 * normal(2, 5, 3, 32)).detach().bfloat16().requires_grad_()
    rope, upstream = rotary_table(5, 32, 50.0), normal(2, 5, 3, 32).detach().bfloat16()
    y = rotated_norm(x, rope)
    y.backward(upstream)
    assert y.dtype == torch.bfloat16
    assert y.float().square().mean().item() == pytest.approx(1.0, rel=0.01)
    wide = x.detach().float().requires_grad_()
    plain = F.rms_norm(_rotate_plainly(wide, rope), (32,))
    plain.backward(upstream.float())
    assert (y.float() - plain).norm() <= 0.01 * plain.norm()
    assert (x.grad.float() - wide.grad).norm() <= 0.01 * wide.grad.norm()


def test_rotated_norm_makes_scores_depend_on_distance_alone():
    x = normal(1, 1, 1, 8).detach().expand(1, 12, 1, 8)
    y = rotated_norm(x, rotary_table(12, 8, 50_000.0).double())[0, :, 0]
    scores = y @ y.T
    torch.testing.assert_close(scores.diagonal(3), scores[0, 3].expand(9))


def test_half_squared_relu_and_its_gradient():
    x = normal(4, 5)
    torch.testing.assert_close(half_squared_relu(x), 0.5 * F.relu(x) ** 2)
    assert gradcheck(half_squared_relu, (x,))
