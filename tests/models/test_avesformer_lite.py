"""The small network: evidence that it learns to trust, silence, and its size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors, models
from avs_jax.backbones.efficientnet_lite import EfficientNetLite, Stage
from avs_jax.models.avesformer import AVESFormer
from avs_jax.models.forward import count_params, init_shapes
from avs_jax.weights.trained import build_model
from tests.test_configs import load

STAGES = tuple(Stage(1, 3, stride, 1, 8) for stride in (1, 2, 2, 2, 2))
SILENCE = 0.02
NAMES = {"match": 1.0, "num_tags": 3, "num_semantic": 3}
SOUNDING, QUIET = 1.0, -1.0  # of the log-mel: what `Ear` hears


class Ear(nn.Module):
    """Hears every class of AudioSet where the log-mel is above 0, else none."""

    @nn.compact
    def __call__(self, log_mel, train=False, frame_mask=None):
        return nn.Dense(8)(log_mel.mean((1, 2))[:, None])

    def classify(self, features):
        loud = features[:, :1] > 0  # the only parameter is made positive below
        return jnp.where(loud, 5.0, -20.0) * jnp.ones((1, 521))


def make_model(**fields):
    return AVESFormer(
        backbone=EfficientNetLite(stages=STAGES, num_classes=1000, head_width=16),
        audio_backbone=Ear(),
        **{
            "dim": 8,
            "num_heads": 2,
            "num_prompts": 2,
            "pqg_layers": 1,
            "pqg_hidden": 8,
            "early_stages": 1,
            "late_stages": 1,
            "late_hidden": 8,
            "decoder_stride": 16,
            "head_widths": (8, 4),
            "norm_groups": 4,
            "standardise": True,
            "refine": (8, 4),
            "audio_hidden": 8,
            "evidence": True,
            "silence": SILENCE,
            "dtype": jnp.dtype("float32"),
        }
        | fields,
    )


def inputs(sound, b=1, t=2, size=64):
    frames = np.random.default_rng(0).normal(size=(b, t, size, size, 3)).astype(np.float32)
    return jnp.asarray(frames), jnp.full((b, t, 96, 64), sound, jnp.float32)


BOTH = pytest.mark.parametrize("fields, weights", [({}, "variables"), (NAMES, "naming")])


def make_variables(fill_variables, **fields):
    found = fill_variables(make_model(**fields), *inputs(SOUNDING))
    ear = found["params"]["audio_backbone"]["Dense_0"]
    ear["kernel"], ear["bias"] = np.abs(ear["kernel"]), np.zeros_like(ear["bias"])
    return found


@pytest.fixture(scope="module")
def variables(fill_variables):
    return make_variables(fill_variables)


def run(variables, sound, method=None, **fields):
    model = make_model(**fields)
    return jax.jit(lambda v, *x: model.apply(v, *x, method=method))(variables, *inputs(sound))


def test_what_is_not_in_the_table_marks_nothing(variables):
    probability = jax.nn.sigmoid(run(variables, QUIET)["logits"])
    assert float(probability.max()) < 1e-6


def test_what_is_in_the_table_may_be_marked(variables):
    assert float(run(variables, SOUNDING)["logits"].min()) > -19


@BOTH
def test_see_and_decide_are_the_call(fields, weights, request):
    model, variables = make_model(**fields), request.getfixturevalue(weights)
    frames, log_mel = inputs(SOUNDING)

    @jax.jit
    def in_steps(variables, frames, log_mel):
        seen = model.apply(variables, frames, method="see")
        return model.apply(variables, seen, log_mel, method="decide")["logits"]

    whole = run(variables, SOUNDING, **fields)["logits"]
    np.testing.assert_allclose(in_steps(variables, frames, log_mel), whole, atol=1e-5)


@BOTH
def test_features_that_were_kept_give_the_call(fields, weights, request):
    model, variables = make_model(**fields), request.getfixturevalue(weights)
    frames, log_mel = inputs(SOUNDING)

    @jax.jit
    def from_features(variables, frames, log_mel):
        kept = model.apply(variables, frames, method="look")
        kept |= model.apply(variables, log_mel, method="listen")
        kept = {name: x.reshape(1, 2, *x.shape[1:]) for name, x in kept.items()}
        return model.apply(variables, kept, method="decide_features")["logits"]

    whole = run(variables, SOUNDING, **fields)["logits"]
    np.testing.assert_allclose(from_features(variables, frames, log_mel), whole, atol=1e-5)


def test_dropped_sounds_leave_evidence_alone(variables):
    """Without its token a second is decided by evidence; evaluation drops none."""
    model = make_model(sound_drop=1.0)
    logits = run(variables, SOUNDING)["logits"]
    np.testing.assert_array_equal(run(variables, SOUNDING, sound_drop=1.0)["logits"], logits)

    @jax.jit
    def train(variables, *x):
        keys = {"dropout": jax.random.key(0)}
        return model.apply(variables, *x, train=True, mutable=["batch_stats"], rngs=keys)[0]

    outputs = train(variables, *inputs(SOUNDING))
    assert float(jnp.abs(outputs["logits"] - logits).max()) > 1e-3


def test_evidence_needs_classifiers():
    with pytest.raises(errors.UnknownNameError, match="backbone for evidence 'vggish'; known: eff"):
        models.get_model("avesformer", "efficientnet_lite0", evidence=True)


def test_refinement_goes_from_sixteen():
    with pytest.raises(errors.BadValueError, match="decoder_stride=16"):
        init_shapes(make_model(decoder_stride=8), 1, 64)


def test_lite_has_nine_million_parameters_at_most():
    config = load("avesformer", "size=lite")
    assert (config.data.name, config.remember.takes) == ("stamps", 5)
    shapes = init_shapes(build_model(config), 1, config.data.size)
    assert count_params(shapes["params"]) == 8_954_273


@pytest.fixture(scope="module")
def naming(fill_variables):
    return make_variables(fill_variables, **NAMES)


@pytest.mark.parametrize("stride, refine", [(16, (8, 4)), (8, ())])
def test_names_are_learnt_in_place_of_auxiliary_heads(stride, refine):
    model = make_model(**NAMES, decoder_stride=stride, refine=refine)
    frames, log_mel = inputs(SOUNDING)
    variables = jax.eval_shape(model.init, jax.random.key(0), frames, log_mel)
    assert "auxiliary" not in variables["params"]
    train = lambda v, *x: model.apply(  # noqa: E731
        v, *x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
    )
    outputs, _ = jax.eval_shape(train, variables, frames, log_mel)
    assert outputs["tags"].shape == (1, 2, 3)
    assert outputs["semantic"].shape == (1, 2, 4, 4, 3)
    assert outputs["logits"].shape == (1, 2, 64, 64, 1)


def test_names_are_of_no_use_to_evaluation_beside_its_logits(naming):
    assert set(run(naming, SOUNDING, **NAMES)) == {"logits"}


def test_match_changes_what_is_marked(naming):
    with_names, without = (
        run(naming, SOUNDING, **NAMES | {"match": weight})["logits"] for weight in (1.0, 0.01)
    )
    assert float(jnp.abs(with_names - without).max()) > 0.1


def test_match_without_names_is_refused():
    with pytest.raises(errors.BadValueError, match="num_tags=0 and num_semantic=0"):
        init_shapes(make_model(match=1.0), 2, 64)
