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


def test_rotated_norm_makes_scores_depend_on_distance_alone():
    x = normal(1, 1, 1, 8).detach().expand(1, 12, 1, 8)
    y = rotated_norm(x, rotary_table(12, 8, 50_000.0).double())[0, :, 0]
    scores = y @ y.T
    torch.testing.assert_close(scores.diagonal(3), scores[0, 3].expand(9))


def test_half_squared_relu_and_its_gradient():
    x = normal(4, 5)
    torch.testing.assert_close(half_squared_relu(x), 0.5 * F.relu(x) ** 2)
    assert gradcheck(half_squared_relu, (x,))
