"""AVESFormer: shapes, golden parameter counts, and the claims of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors, models
from avs_jax.layers import losses
from avs_jax.models.forward import count_params, init_shapes

SMALL = {
    "backbone": "small_resnet",
    "audio_backbone": "audio_cnn",
    "dim": 32,
    "num_heads": 4,
    "pqg_layers": 1,
    "pqg_hidden": 64,
    "late_hidden": 64,
    "refine": (16, 8),
    "head_widths": (16, 8),
    "norm_groups": 8,
}
AT_AN_EIGHTH = {"decoder_stride": 8, "refine": ()}  # the wide form: see the module


def apply(model, variables, *inputs, **call):
    """One compiled program: much quicker than compiling every operation."""
    return jax.jit(lambda v, *x: model.apply(v, *x, **call))(variables, *inputs)


# (fields) -> parameters, VGGish's 72 141 184 included; once measured, they may not drift.
GOLDEN = [
    ({}, 107_491_073),
    ({"num_classes": 71}, 107_500_103),
    (AT_AN_EIGHTH, 108_008_129),
    ({"num_prompts": 0}, 105_907_457),
    ({"early_stages": 0, "late_stages": 6}, 108_683_777),
    ({"early_stages": 6, "late_stages": 0}, 106_298_369),
    ({"refine": ()}, 108_008_129),
    ({"backbone": "resnet18"}, 94_508_289),
    ({"backbone": "pvt_v2_b5"}, 164_791_169),
]


def small_inputs(b=1, t=2, size=32, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(b, t, size, size, 3)).astype(np.float32)
    log_mel = rng.normal(size=(b, t, 96, 64)).astype(np.float32)
    return jnp.asarray(frames), jnp.asarray(log_mel)


@pytest.mark.parametrize("fields, expected", GOLDEN, ids=lambda x: str(x))
def test_parameter_count(fields, expected):
    shapes = init_shapes(models.get_model("avesformer", **fields), 1, 64)
    assert count_params(shapes["params"]) == expected


@pytest.mark.parametrize("form", [{}, AT_AN_EIGHTH], ids=["default", "at 1/8"])
@pytest.mark.parametrize("num_classes", [1, 71])
def test_logits_have_the_size_of_the_frames(fill_variables, num_classes, form):
    model = models.get_model("avesformer", num_classes=num_classes, **SMALL | form)
    frames, log_mel = small_inputs(b=2, t=3, size=64)
    outputs = apply(model, fill_variables(model, frames, log_mel), frames, log_mel)
    assert outputs["logits"].shape == (2, 3, 64, 64, num_classes)
    assert set(outputs) == {"logits"}


def cross_attention_spread(fill_variables, num_prompts):
    """Largest variance over pixels of the first cross-attention's output."""
    model = models.get_model("avesformer", num_prompts=num_prompts, **SMALL)
    inputs = small_inputs()
    variables = fill_variables(model, *inputs)
    _, sown = apply(
        model, variables, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )
    mixed = sown["intermediates"]["late0"]["cross_attention"]["__call__"][0]  # [n s d]
    return float(jnp.var(mixed, axis=1).max())


def test_without_prompts_attention_dissipates(fill_variables):
    # A softmax over one key is 1: every pixel gets the same vector, to the bit or nearly.
    assert cross_attention_spread(fill_variables, num_prompts=0) < 1e-12


def test_with_prompts_attention_tells_pixels_apart(fill_variables):
    assert cross_attention_spread(fill_variables, num_prompts=16) > 1e-4


def flops(fields, inputs):
    model = models.get_model("avesformer", **(SMALL | fields))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    compiled = jax.jit(lambda v, *x: model.apply(v, *x)["logits"]).lower(shapes, *inputs).compile()
    return compiled.cost_analysis()["flops"]


def test_an_early_stage_costs_less_than_a_late_one():
    # At the sizes of the default: 196 tokens of width 256, feed-forward 2048.
    published = {"dim": 256, "num_heads": 8, "pqg_hidden": 256, "late_hidden": 2048}
    inputs = small_inputs(t=1, size=224)
    early = flops(published | {"early_stages": 1, "late_stages": 1}, inputs)
    late = flops(published | {"early_stages": 0, "late_stages": 2}, inputs)
    assert early < late


def test_the_sound_changes_the_masks(fill_variables):
    model = models.get_model("avesformer", **SMALL)
    frames, log_mel = small_inputs()
    variables = fill_variables(model, frames, log_mel)
    ours = apply(model, variables, frames, log_mel)["logits"]
    other = apply(model, variables, frames, log_mel[:, ::-1])["logits"]
    assert float(jnp.abs(ours - other).max()) > 1e-3


def test_frames_do_not_see_each_other(fill_variables):
    model = models.get_model("avesformer", **SMALL)
    frames, log_mel = small_inputs(t=3)
    variables = fill_variables(model, frames, log_mel)
    clip = apply(model, variables, frames, log_mel)["logits"][:, :1]
    alone = apply(model, variables, frames[:, :1], log_mel[:, :1])["logits"]
    np.testing.assert_allclose(clip, alone, atol=1e-5)  # other batch size, other summation order


@pytest.mark.parametrize("form, side", [({}, 4), ({"refine": ()}, 4), (AT_AN_EIGHTH, 8)])
def test_decoder_works_at_its_stride(fill_variables, form, side):
    model = models.get_model("avesformer", **SMALL | form)
    inputs = small_inputs(size=64)
    variables = fill_variables(model, *inputs)
    _, sown = apply(
        model, variables, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )
    assert sown["intermediates"]["neck"]["__call__"][0][0].shape[1:3] == (side, side)


def test_decoder_stride_must_be_8_or_16():
    with pytest.raises(errors.BadValueError, match="decoder_stride=4"):
        init_shapes(models.get_model("avesformer", decoder_stride=4, **SMALL), 1, 32)


def test_bfloat16_computes_close_to_float32_with_float32_parameters(fill_variables):
    inputs = small_inputs()
    exact = models.get_model("avesformer", **SMALL)
    rough = models.get_model("avesformer", dtype="bfloat16", **SMALL)
    variables = fill_variables(exact, *inputs)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(init_shapes(rough, 1, 32)))
    a, b = (apply(m, variables, *inputs)["logits"] for m in (exact, rough))
    assert b.dtype == jnp.float32
    # bfloat16 has 8 bits of mantissa: about 1 % through a dozen layers.
    assert float(jnp.abs(a - b).mean() / jnp.abs(a).mean()) < 0.05


def example_batch(b=1, t=2, size=32, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "label": jnp.asarray(rng.integers(0, 4, (b, t, size, size)), jnp.int32),
        "label_mask": jnp.ones((b, t), bool),
        "frame_mask": jnp.ones((b, t), bool),
    }


@pytest.mark.parametrize("num_classes, form", [(1, {}), (5, {}), (1, AT_AN_EIGHTH)])
def test_every_parameter_gets_a_gradient(fill_variables, num_classes, form):
    fields = SMALL | {"num_classes": num_classes, "num_tags": 3, "num_semantic": 3} | form
    model = models.get_model("avesformer", **fields)
    inputs, batch = small_inputs(), example_batch()
    variables = fill_variables(model, *inputs)

    def loss(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, _ = model.apply(given, *inputs, train=True, mutable=["batch_stats"])
        weights = {"tag_weight": 1.0, "semantic_weight": 1.0}
        return losses.total(models.get_loss("avesformer")(outputs, batch, **weights))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not float(jnp.abs(g).max()) > 0
        # A constant added to all keys (or before a norm over them) changes no softmax.
        and not jax.tree_util.keystr(path).endswith("['key']['bias']")
    ]
    assert not dead


def test_loss_counts_labelled_frames_only():
    logits = jnp.zeros((1, 2, 8, 8, 1)).at[:, 1].set(50.0)
    batch = {
        "label": jnp.zeros((1, 2, 8, 8), jnp.int32),
        "label_mask": jnp.array([[True, False]]),
        "frame_mask": jnp.ones((1, 2), bool),
    }
    parts = losses.means(models.get_loss("avesformer")({"logits": logits}, batch))
    np.testing.assert_allclose(parts["bce"], np.log(2), rtol=1e-6)
