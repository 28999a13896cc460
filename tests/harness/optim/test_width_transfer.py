import pytest

import loopscale
from harness.optim.parameter_groups import build_optimizer, describe_groups
from harness.run.config import OptimizerConfig
from harness.run.identity import identity
from harness.run.length import solve
from model.config import ModelConfig
from model.config_validation import ConfigError
from model.transformer import build_model

MODEL = ModelConfig(
    width=64, heads=2, prelude_layers=1, core_layers=1, coda_layers=1, vocabulary_size=64, sequence_length=16
)
TRANSFER = {"lr_scaling": "mup_width", "lr_base_width": 16, "adamw_learning_rate": 1.0}


def rates(config):
    optimizer = build_optimizer(build_model(MODEL, seed=0), config)
    return {
        name: group["peak_lr"] for group in optimizer.param_groups for name in group["param_names"]
    }, optimizer.param_groups


def test_rates_move_with_the_role_of_a_parameter():
    found, _ = rates(OptimizerConfig(**TRANSFER, muon_learning_rate=3.0))
    # Four times the base width: hidden matrices at a quarter, the tied embedding at a half.
    assert found["injection.B"] == found["readout.weight"] == 0.25
    assert found["embedding"] == 0.5
    assert found["final_norm.weight"] == found["injection.A_log"] == found["value_tables.0"] == 1.0
    assert found["core.0.attn.c_q.weight"] == 3.0


def test_plain_adamw_scales_the_matrices_of_blocks_too():
    found, _ = rates(OptimizerConfig(name="adamw", **TRANSFER))
    assert found["core.0.attn.c_q.weight"] == found["prelude.0.mlp.fc.weight"] == 0.25
    assert found["prelude.0.norm_1.weight"] == 1.0


def test_without_transfer_the_width_changes_nothing():
    found, _ = rates(OptimizerConfig(adamw_learning_rate=1.0))
    assert found["embedding"] == found["injection.B"] == found["final_norm.weight"] == 1.0


def test_the_groups_can_be_printed():
    _, groups = rates(OptimizerConfig(**TRANSFER))
    text = describe_groups(groups)
    names = [name for group in groups for name in group["param_names"]]
    assert all(f" {name}" in text for name in names)
    assert "adamw x0.25" in text and "muon 64x64" in text


def test_the_choice_is_science_and_checked(tiny):
    def run(*more):
        study = loopscale.compose([*tiny, "steps=5", *more])
        return solve(next(iter(study.runs.values())))

    chosen = run("optimizer.lr_scaling=mup_width", "optimizer.lr_base_width=16")
    assert identity(chosen, "d")["optimizer"]["lr_scaling"] == "mup_width"
    assert "lr_scaling" not in identity(run(), "d")["optimizer"]
    with pytest.raises(ConfigError, match="lr_scaling=mup_width needs lr_base_width"):
        run("optimizer.lr_scaling=mup_width")
    with pytest.raises(ConfigError, match="lr_base_width=16 has no effect with lr_scaling=none"):
        run("optimizer.lr_base_width=16")
    with pytest.raises(ConfigError, match=r"optimizer.lr_scaling=mup: must be 'none' or 'mup_width'"):
        run("optimizer.lr_scaling=mup")
