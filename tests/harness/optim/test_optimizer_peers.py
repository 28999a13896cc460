"""The optimisers against those of torch, on a quadratic, and on a run."""

from __future__ import annotations

import pytest
import torch

from harness.optim import optimizer as update_rules
from harness.optim.optimizer import polar_factor
from harness.optim.parameter_groups import optimizer_for
from harness.run.config import OptimizerConfig
from harness.training.job import run_job

TORCH_QUINTIC = (3.4445, -4.775, 2.0315)  # the coefficients that torch.optim.Muon uses at every step


def gaussian(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def torch_muon_update(gradient):
    """Return what torch.optim.Muon subtracts at rate 1, without momentum, decay or scaling by shape."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient
    muon = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    muon.step()
    return -weight.detach() / max(1.0, gradient.shape[0] / gradient.shape[1]) ** 0.5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (96, 32), (32, 96)])
def test_the_iteration_is_that_of_torchs_muon(monkeypatch, rows, columns):
    gradient = gaussian(rows, columns)
    expected = torch_muon_update(gradient)
    ours = polar_factor(gradient[None], 5, torch.float32)[0]
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    # Both approach the polar factor; the Polar Express coefficients come closer.
    assert (ours - u @ v).norm() < (expected - u @ v).norm()
    monkeypatch.setattr(update_rules, "_QUINTICS", (TORCH_QUINTIC,) * 5)
    monkeypatch.setattr(update_rules, "_SAFETY", 1.0)
    same = polar_factor(gradient[None], 5, torch.float32)[0]
    assert (same - expected).norm() < 0.02 * expected.norm()  # torch's runs in bfloat16, 8 bits


@pytest.mark.parametrize("name", ["muon_adamw", "adamw"])
def test_a_quadratic_is_minimised(name):
    config = OptimizerConfig(
        name=name, muon_learning_rate=0.1, adamw_learning_rate=0.1, muon_weight_decay=0.0, adamw_eps=1e-8
    )
    target = gaussian(24, 16, seed=1)
    weight = torch.nn.Parameter(torch.zeros(24, 16))
    optimizer = optimizer_for([("core.0.mlp.fc.weight", weight)], config, 16)
    for step in range(300):
        optimizer.set_schedule(1 - step / 300, 1.0)
        weight.grad = weight.detach() - target
        optimizer.step()
    assert (weight - target).norm() < 0.02 * target.norm()


@pytest.mark.parametrize("name", ["muon_adamw", "adamw"])
def test_a_run_improves(make, cache, name):
    folder, dataset = make("steps=60", f"optimizer={name}", "optimizer.adamw_learning_rate=0.01")
    assert run_job(folder.path, cache) == "done"
    assert folder.record()["val_loss_nats"] < dataset.unigram_nats
    groups = (folder.path / "logs" / "parameter_groups.txt").read_text()
    assert ("muon 32x32" in groups) == (name == "muon_adamw") and "embedding" in groups
