import pytest

from model.config import ModelConfig, gated_layers, value_table_layers

SHAPE = {"width": 64, "heads": 4, "vocabulary_size": 64, "sequence_length": 16}
LAYERS = {"prelude_layers": 1, "core_layers": 1, "coda_layers": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 66}, "even multiple of heads .* got width=66 heads=4"),
        ({"width": 12}, "even multiple of heads"),  # heads of dimension 3 have no rotary pairs
        ({"kv_heads": 3}, "kv_heads must divide heads=4, got kv_heads=3"),
        ({"core_layers": 0}, "a looped model needs core_layers >= 1, got 0"),
        ({"kind": "transformer"}, "all its layers in prelude_layers, got core_layers=1 coda_layers=1"),
        ({"depth_sampling": "fixed", "mean_recurrence": 2.5}, "a whole mean_recurrence, got 2.5"),
    ],
)
def test_contradicting_fields_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig(**{**SHAPE, **LAYERS, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"mean_recurrence": 1, "depth_sampling": "fixed"}, "fixed"),
        ({"mean_recurrence": 1}, "looped"),  # the published control: a clamped Poisson
        ({"mean_recurrence": 8, "depth_sampling": "fixed"}, "looped"),
        ({"kind": "transformer", "core_layers": 0, "coda_layers": 0}, "transformer"),
    ],
)
def test_table_kind_tells_a_fixed_depth_from_the_published_control(fields, kind):
    assert ModelConfig(**{**SHAPE, **LAYERS, **fields}).table_kind == kind


@pytest.mark.parametrize(("mean", "expected"), [(1, 1), (2, 1), (3, 2), (4.5, 3), (8, 4), (12, 6)])
def test_backprop_depth_is_half_the_mean_rounded_up(mean, expected):
    assert ModelConfig(**SHAPE, **LAYERS, mean_recurrence=mean).resolved_backprop_depth == expected


def test_a_whole_mean_is_one_model_however_it_is_written():
    assert repr(ModelConfig(**SHAPE, **LAYERS, mean_recurrence=8.0)) == repr(ModelConfig(**SHAPE, **LAYERS))


@pytest.mark.parametrize(
    ("mean", "used"), [(1, {"prelude", "coda"}), (2, {"prelude"}), (3, set()), (4, {"coda"}), (8, {"coda"})]
)
def test_published_wiring_loses_value_embeddings_with_an_odd_core(mean, used):
    config = ModelConfig(**SHAPE, **LAYERS, mean_recurrence=mean, value_embedding_wiring="published")
    names = ["prelude", "core", "coda"]
    assert {names[i] for i in set(value_table_layers(config)) & set(gated_layers(config))} == used


@pytest.mark.parametrize("mean", [1, 2, 3, 4, 8])
def test_published_wiring_agrees_with_ours_for_even_layer_counts(mean):
    fields = {**SHAPE, "prelude_layers": 2, "core_layers": 4, "coda_layers": 2, "mean_recurrence": mean}
    published = ModelConfig(**fields, value_embedding_wiring="published")
    assert gated_layers(published) == gated_layers(ModelConfig(**fields)) == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("fields", "depth"),
    [({"kind": "looped", "mean_recurrence": 2.6}, 3), ({"kind": "looped", "mean_recurrence": 1}, 1)],
)
def test_a_looped_model_is_judged_at_its_mean_recurrence(fields, depth):
    assert ModelConfig(**SHAPE, **LAYERS, **fields).own_depth == depth


def test_a_model_without_a_loop_is_judged_at_one_whatever_its_mean_recurrence():
    layers = {"prelude_layers": 2, "core_layers": 0, "coda_layers": 0}
    assert ModelConfig(**SHAPE, **layers, kind="transformer", mean_recurrence=8).own_depth == 1
