from pathlib import Path

import pytest
from omegaconf import OmegaConf

from model.config import ModelConfig
from model.config_validation import build
from model.flops import parameter_counts
from tests.shipped import SHIPPED

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "model"
PRINTED = {
    "looped_140m": 144_323_136,
    "looped_370m": 388_003_328,
    "looped_770m": 776_655_680,
    "looped_1300m": 1_338_591_744,
    "transformer_140m": 143_141_184,
    "transformer_370m": 385_903_104,
    "transformer_770m": 773_375_040,
    "transformer_1300m": 1_333_868_544,
    "rdm_350m": 378_558_464,
}


def configured(name):
    whole = OmegaConf.create(
        {"data": {"vocabulary_size": 1024}, "model": OmegaConf.load(FOLDER / f"{name}.yaml")}
    )
    return build(ModelConfig, OmegaConf.to_container(whole, resolve=True)["model"])


@pytest.mark.parametrize("name", PRINTED)
def test_a_published_size_has_the_printed_parameters(name):
    assert parameter_counts(configured(name)).total == PRINTED[name]


@pytest.mark.parametrize("name", SHIPPED["model"])
def test_every_size_is_a_model_with_heads_of_at_least_16_channels(name):
    assert configured(name).head_dim >= 16


@pytest.mark.parametrize("name", ["looped_150k", "looped_1m", "looped_10m"])
def test_the_ladder_is_named_after_its_parameters_outside_the_tables(name):
    counts = parameter_counts(configured(name))
    named = {"150k": 150e3, "1m": 1e6, "10m": 10e6}[name.removeprefix("looped_")]
    assert counts.core + counts.other == pytest.approx(named, rel=0.25)
