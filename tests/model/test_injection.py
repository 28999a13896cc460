import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.injection import AddInjection, DiagonalInjection, LinearInjection
from model.transformer import build_model
from tests.model.test_transformer import TINY

torch.set_num_threads(1)
ANY = st.floats(-(2.0**100), 2.0**100, width=32)


def diagonal(a_log, dt_bias, exact=False):
    injection = DiagonalInjection(1, exact)
    for parameter, value in ((injection.A_log, a_log), (injection.dt_bias, dt_bias), (injection.B, 1.0)):
        torch.nn.init.constant_(parameter, value)
    return injection


@given(a_log=ANY, dt_bias=ANY)
def test_diagonal_radius_is_below_one_for_any_parameter_values(a_log, dt_bias):
    assert 0 <= diagonal(a_log, dt_bias).spectral_radius() < 1


def test_the_published_start_decays_by_the_square_root_of_a_fifth():
    assert build_model(TINY, seed=0).injection.spectral_radius() == pytest.approx(math.sqrt(0.2), rel=1e-6)


@given(a_log=st.floats(-3, 3), dt_bias=st.floats(-3, 3))
def test_exact_hold_solves_the_differential_equation_for_a_constant_input(a_log, dt_bias):
    # dh/dt = -a h + u over a time dt, from h = 2 with u = 3
    injection = diagonal(a_log, dt_bias, exact=True)
    drive, carry = injection.prepare(torch.tensor([[[3.0]]]))
    a, dt = math.exp(a_log), math.log1p(math.exp(dt_bias))
    exact = 3 / a + (2 - 3 / a) * math.exp(-a * dt)
    assert injection.mix(torch.tensor([[[2.0]]]), drive, carry).item() == pytest.approx(
        exact, rel=1e-4, abs=1e-5
    )


def test_linear_injection_is_a_projection_of_the_concatenation():
    injection = LinearInjection(4)
    torch.nn.init.normal_(injection.weight, generator=torch.Generator().manual_seed(0))
    state, prelude = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    mixed = injection.mix(state, *injection.prepare(prelude))
    torch.testing.assert_close(mixed, torch.cat([state, prelude], dim=-1) @ injection.weight.T)
    torch.nn.init.eye_(injection.weight)
    assert injection.spectral_radius() == pytest.approx(1.0)


def test_added_injection_carries_states_over_for_ever():
    assert AddInjection().spectral_radius() == 1.0
    assert build_model(replace(TINY, injection="add"), seed=0).injection.spectral_radius() == 1.0
