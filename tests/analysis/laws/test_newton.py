"""Rows are minimised in chunks: bounded memory, and the same bits whatever the chunks."""

import tracemalloc

import numpy as np
import pytest

from analysis.laws import newton
from analysis.laws.fit import fit_law
from analysis.laws.variable_projection import fit_shared_shape


def curves(points, budgets=6, seed=0):
    """Index of the budget, log N, log D and loss of noisy isoFLOP curves."""
    rng = np.random.default_rng(seed)
    index = np.arange(points) % budgets
    flops = np.geomspace(1e18, 1e20, budgets)[index]
    size = 4e8 * (flops / 1e19) ** 0.45 * np.exp(rng.uniform(-1.6, 1.6, points))
    loss = 1.69 + 406.4 * size**-0.34 + 410.7 * (flops / 6 / size) ** -0.28
    return index, np.log(size), np.log(flops / 6 / size), loss + 0.003 * rng.standard_normal(points)


@pytest.mark.parametrize("chunk_bytes", [1, 200_001, 2**40])
def test_chunks_change_no_bit(chunk_bytes, monkeypatch):
    index, u, v, loss = curves(60)
    drawn = loss + 0.003 * np.random.default_rng(1).standard_normal((12, 60))
    weights = np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60), size=12)

    def fits():
        data = {"params": np.exp(u), "tokens": np.exp(v)}
        start = np.array([0.34, 0.28])
        shapes = [fit_shared_shape(u, v, drawn, index, start=start, weights=w) for w in (None, weights)]
        arrays = [(fit.exponents, fit.amplitudes, fit.squared_error) for fit in shapes]
        return [fit_law("surface", data, loss, bootstrap=12).draws, *(a for each in arrays for a in each)]

    expected = fits()
    monkeypatch.setattr(newton, "CHUNK_BYTES", chunk_bytes)
    for one, other in zip(fits(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_memory_does_not_grow_with_the_resamples(monkeypatch):
    """Beside its inputs (8 bytes a number) a fit needs some chunks, not some arrays of all resamples."""
    monkeypatch.setattr(newton, "CHUNK_BYTES", 2**20)
    index, u, v, loss = curves(200)
    drawn = np.repeat(loss[None], 200, 0)
    tracemalloc.start()
    try:
        fit_shared_shape(u, v, drawn, index, start=np.array([0.34, 0.28]))
        data = {"params": np.exp(u), "tokens": np.exp(v)}
        fit_law("surface", data, loss, bootstrap=200)
        assert tracemalloc.get_traced_memory()[1] < 3 * newton.CHUNK_BYTES  # all at once: 33 arrays, 10 MB
    finally:
        tracemalloc.stop()
