"""PCMANet's pieces, its corrections and its size, on small networks (see also its parity test)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax import errors, models
from avs_jax.models import pcmanet
from tests.models.small_pcmanet import QUICK, SMALL, apply, make, padded, small_inputs
from tests.parity import fill

# ---------------------------------------------------------------- AVGA


def test_avga_weights_each_group_by_its_cosine_with_the_sound(fill_variables):
    rng = np.random.default_rng(0)
    x, sound = jnp.float32(rng.normal(size=(2, 3, 3, 8))), jnp.float32(rng.normal(size=(2, 8)))
    module = pcmanet.AVGA(groups=2)
    variables = fill_variables(module, x, sound)
    y, sown = module.apply(
        variables, x, sound, capture_intermediates=True, mutable=["intermediates"]
    )
    sown = sown["intermediates"]
    groups = np.split(np.asarray(sown["seq1"]["__call__"][0]), 2, axis=-1)
    guide = np.maximum(sown["fc1"]["__call__"][0], 0.0)
    guide = guide / np.maximum(np.linalg.norm(guide, axis=-1, keepdims=True), 1e-12)
    weighted = []
    for group in groups:
        unit = group / np.maximum(np.linalg.norm(group, axis=-1, keepdims=True), 1e-12)
        cosine = (unit * guide[:, None, None]).sum(-1, keepdims=True)
        weighted.append(cosine * group)
    second = pcmanet.ConvNormRelu(8, 1)
    inner = {name: tree["seq2"] for name, tree in variables.items()}
    expected = second.apply(inner, jnp.concatenate(weighted, axis=-1))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_avga_has_finite_gradients_where_a_group_or_the_sound_is_silent(fill_variables):
    x, sound = jnp.zeros((1, 2, 2, 8)), jnp.zeros((1, 8))
    module = pcmanet.AVGA(groups=2)
    variables = fill_variables(module, x, sound)
    for conv in (variables["params"]["seq1"]["norm"], variables["params"]["fc1"]):
        conv["bias"] = np.full_like(conv["bias"], -1.0)  # everything dies in the ReLU
    gradient = jax.jit(
        jax.grad(lambda *inputs: module.apply(variables, *inputs).sum(), argnums=(0, 1)),
        compiler_options=QUICK,
    )
    assert all(np.isfinite(g).all() for g in gradient(x, sound))


def test_grouped_1x1_convolution_equals_xlas(fill_variables):
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 5, 12)))
    module = pcmanet.Conv(8, 1, groups=4)
    variables = fill_variables(module, x)
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    expected += variables["params"]["bias"]
    np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)


# ---------------------------------------------------------------- QSCA


def gather_attention(params, sounds, pixels, select, num_heads):
    """As the published code has it, in numpy: per clip, only the selected pixels become queries."""

    def norm(x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / np.sqrt(var + 1e-5)
        return x * params["norm"]["scale"] + params["norm"]["bias"]

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def attend(q, k, v):  # [q d] [k d] [k d]
        heads = [np.split(x, num_heads, axis=-1) for x in (q, k, v)]
        scale = heads[0][0].shape[-1] ** -0.5
        return np.concatenate(
            [softmax(qi @ ki.T * scale) @ vi for qi, ki, vi in zip(*heads, strict=True)], axis=-1
        )

    new_sounds, new_pixels = np.empty_like(sounds), np.empty_like(pixels)
    for clip in range(len(sounds)):
        a, v = norm(sounds[clip]), norm(pixels[clip].reshape(-1, pixels.shape[-1]))
        q_a, k_a, v_a = np.split(a @ params["a_to_qkv"]["kernel"], 3, axis=-1)
        k_v, v_v = np.split(v @ params["v_to_kv"]["kernel"], 2, axis=-1)
        chosen = np.flatnonzero(select[clip])
        seen = np.zeros_like(v)
        if len(chosen):
            seen[chosen] = attend(v[chosen] @ params["v_to_q"]["kernel"], k_a, v_a)
        out, bias = params["to_out"]["kernel"], params["to_out"]["bias"]
        new_sounds[clip] = sounds[clip] + attend(q_a, k_v, v_v) @ out + bias
        new_pixels[clip] = pixels[clip] + (seen @ out + bias).reshape(pixels[clip].shape)
    return new_sounds, new_pixels


@settings(deadline=None, max_examples=10)
@given(share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_dense_masked_attention_equals_gathering_the_selected_tokens(share, seed):
    rng = np.random.default_rng(seed)
    sounds = rng.normal(size=(2, 3, 8)).astype(np.float32)
    pixels = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    select = rng.random((2, 3, 5)) < share
    module = pcmanet.CrossModalAttention(num_heads=2)
    inputs = jnp.asarray(sounds), jnp.asarray(pixels)
    params = module.init(jax.random.key(seed), *inputs)["params"]
    ours = module.apply({"params": params}, *inputs, jnp.asarray(select))
    params = jax.tree.map(np.asarray, params)
    reference = gather_attention(params, sounds, pixels, select, num_heads=2)
    for x, y in zip(ours, reference, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_no_mask_means_every_token_asks():
    rng = np.random.default_rng(0)
    sounds, pixels = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 3, 5, 8))
    sounds, pixels = jnp.float32(sounds), jnp.float32(pixels)
    module = pcmanet.CrossModalAttention(num_heads=2)
    variables = module.init(jax.random.key(0), sounds, pixels)
    everything = module.apply(variables, sounds, pixels, jnp.ones((2, 3, 5), bool))
    for x, y in zip(module.apply(variables, sounds, pixels), everything, strict=True):
        np.testing.assert_array_equal(x, y)


def run_qsca(restore):
    """Guidance of a QSCA on 4 x 6 pixels, and its tokens in row-major order."""
    rng = np.random.default_rng(0)
    x, sound = jnp.float32(rng.normal(size=(2, 4, 6, 8))), jnp.float32(rng.normal(size=(2, 8)))
    sound = sound[None]  # one clip
    module = pcmanet.QSCA(num_heads=2, stride=1, restore_token_order=restore)
    variables = module.init(jax.random.key(0), x, sound)
    (guidance, _), sown = module.apply(
        {"params": variables["params"]}, x, sound, capture_intermediates=True
    )
    tokens = sown["intermediates"]["attention"]["__call__"][0][1].reshape(2, 24, 8)
    return np.asarray(guidance), np.asarray(tokens)


def test_restored_token_order_puts_each_token_where_its_pixel_is():
    guidance, tokens = run_qsca(restore=True)
    np.testing.assert_array_equal(guidance, tokens.reshape(2, 4, 6, 8))


def test_published_token_order_reads_tokens_as_a_channels_first_map():
    guidance, tokens = run_qsca(restore=False)
    np.testing.assert_array_equal(guidance[1, 2, 3], tokens[1].reshape(-1)[2 * 6 + 3 :: 24])


def test_tokens_are_means_of_two_by_two_pixels_but_for_the_coarsest_stage():
    model, inputs = models.get_model("pcmanet", **SMALL), small_inputs(t=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    apply = functools.partial(
        model.apply, mutable=["intermediates"], capture_intermediates=is_embedding
    )
    sown = jax.eval_shape(apply, shapes, *inputs)[1]["intermediates"]
    for stage, side in ((4, 2), (3, 2), (2, 4), (1, 8)):  # of maps of 2, 4, 8, 16
        tokens = sown[f"qsca{stage}"]["embed"]["__call__"][0]
        assert tokens.shape == (1, side, side, 32)


def is_embedding(module, _):
    return module.name == "embed"


def test_a_token_is_the_mean_of_its_pixels():
    x = jnp.float32(np.random.default_rng(0).normal(size=(1, 4, 6, 8)))
    pooled = pcmanet.pool_tokens(x, stride=2)
    assert pooled.shape == (1, 2, 3, 8)
    np.testing.assert_allclose(pooled[0, 1, 2], x[0, 2:4, 4:6].mean((0, 1)), atol=1e-6)


# ---------------------------------------------------------------- CIM


@pytest.mark.parametrize(
    ("logit", "uncertain"), [(0.0, True), (4.59, True), (4.60, False), (-4.59, True), (-4.6, False)]
)
def test_a_token_is_certain_beyond_99_percent_on_either_side(logit, uncertain):
    assert bool(pcmanet.uncertain_mask(jnp.full((1, 1), logit))[0]) is uncertain


@pytest.mark.parametrize(("logit", "uncertain"), [(0.0, True), (8.8, True), (8.9, False)])
def test_with_classes_the_likeliest_one_decides(logit, uncertain):
    # p = 1 / (1 + 70 exp(-logit)) is 0.99 at logit 8.844
    logits = jnp.zeros((1, 71)).at[0, 5].set(logit)
    assert bool(pcmanet.uncertain_mask(logits)[0]) is uncertain


def test_what_is_certain_stays_certain_in_finer_stages(fill_variables):
    inputs = small_inputs()
    outputs = apply(*make(fill_variables), *inputs)
    coarse, middle, fine = (np.asarray(mask) for mask in outputs["masks"])
    assert 0 < coarse.mean() < 1 and 0 < middle.mean() < 1
    assert not (middle & ~coarse.repeat(2, axis=2).repeat(2, axis=3)).any()
    assert not (fine & ~middle.repeat(2, axis=2).repeat(2, axis=3)).any()


def test_kept_is_the_share_of_tokens_that_still_ask(fill_variables):
    inputs = small_inputs()
    outputs = apply(*make(fill_variables), *inputs)
    shares = [float(mask.mean()) for mask in outputs["masks"]]
    np.testing.assert_allclose(outputs["kept"], shares, rtol=1e-6)


def test_without_masking_other_tokens_ask_and_the_answer_changes(fill_variables):
    inputs = small_inputs()
    model, variables = make(fill_variables)
    ours = apply(model, variables, *inputs)["logits"]
    unmasked = apply(model.clone(masking=False), variables, *inputs)["logits"]
    assert float(jnp.abs(ours - unmasked).max()) > 1e-3


@pytest.mark.parametrize(
    ("t", "height", "width", "num_classes"), [(10, 32, 96, 71), (1, 96, 32, 1)]
)
def test_outputs_follow_the_number_of_frames_and_their_size(t, height, width, num_classes):
    inputs = small_inputs(b=2, t=t, height=height, width=width)
    model = models.get_model("pcmanet", **SMALL, num_classes=num_classes)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    assert outputs["logits"].shape == (2, t, height, width, num_classes)
    assert [x.shape for x in outputs["outputs"]] == [outputs["logits"].shape] * 4
    for x, stride in zip(outputs["stage_logits"], (4, 8, 16, 32), strict=True):
        assert x.shape == (2, t, height // stride, width // stride, num_classes)


def test_the_answer_is_the_finest_output(fill_variables):
    inputs = small_inputs()
    outputs = apply(*make(fill_variables), *inputs)
    np.testing.assert_array_equal(outputs["logits"], outputs["outputs"][0])
    assert not np.array_equal(outputs["logits"], outputs["outputs"][1])


def test_clips_do_not_see_each_other(fill_variables):
    frames, log_mel = small_inputs(b=2)
    model, variables = make(fill_variables)
    both = apply(model, variables, frames, log_mel)["logits"][1:]
    alone = apply(model, variables, frames[1:], log_mel[1:])["logits"]
    np.testing.assert_allclose(both, alone, atol=2e-3, rtol=1e-4)


def test_frames_of_a_clip_hear_each_others_sounds(fill_variables):
    frames, log_mel = small_inputs()
    model, variables = make(fill_variables)
    ours = apply(model, variables, frames, log_mel)["logits"]
    theirs = apply(model, variables, frames, log_mel.at[:, 2].set(-4.0))["logits"]
    assert float(jnp.abs(ours - theirs)[:, 0].max()) > 1e-3


def test_sizes_must_be_multiples_of_32():
    model = models.get_model("pcmanet", **SMALL)
    with pytest.raises(errors.BadValueError, match="48 x 64"):
        jax.eval_shape(model.init, jax.random.key(0), *small_inputs(height=48))


@pytest.mark.parametrize("field", ["groups", "num_heads"])
def test_groups_and_heads_must_divide_the_width(field):
    model = models.get_model("pcmanet", **(SMALL | {field: 5}))
    with pytest.raises(errors.BadValueError, match=f"dim=32 is not divisible by {field}=5"):
        jax.eval_shape(model.init, jax.random.key(0), *small_inputs())


def test_bfloat16_keeps_parameters_and_logits_in_float32(fill_variables):
    inputs = small_inputs(t=2)
    model, variables = make(fill_variables, dtype="bfloat16")
    outputs = apply(model, variables, *inputs)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    assert outputs["logits"].dtype == jnp.float32
    assert np.isfinite(outputs["logits"]).all()


def test_parameters_start_as_pytorchs(fill_variables):
    x = jnp.zeros((1, 4, 4, 64))
    params = pcmanet.Conv(32, 3).init(jax.random.key(0), x)["params"]
    bound = (9 * 64) ** -0.5  # 1 / sqrt(fan_in), kernel and bias
    for values in params.values():
        assert 0.8 * bound < float(jnp.abs(values).max()) <= bound
    assert float(params["kernel"].std()) == pytest.approx(bound / 3**0.5, rel=0.05)


# ---------------------------------------------------------------- padded frames


def test_padded_frames_content_never_matters(fill_variables):
    _, first = padded(1.0)
    model, variables = make(fill_variables)
    outputs = [apply(model, variables, *x)["logits"] for x in (first, padded(-3.0)[1])]
    np.testing.assert_allclose(*outputs, atol=1e-4)


def test_published_padded_frames_take_part_in_attention(fill_variables):
    _, long = padded(1.0)
    model, variables = make(fill_variables)
    corrected = models.get_model("pcmanet", **SMALL, mask_padded_frames=True)
    ours, without = (apply(m, variables, *long)["logits"][:, :2] for m in (model, corrected))
    assert float(jnp.abs(ours - without).max()) > 1e-2


def test_corrected_padded_frames_change_no_logit(fill_variables):
    short, long = padded(1.0)
    model, variables = make(fill_variables, mask_padded_frames=True)
    ours, expected = apply(model, variables, *long), apply(model, variables, *short)
    np.testing.assert_allclose(ours["logits"][:, :2], expected["logits"], atol=2e-3, rtol=1e-3)
    np.testing.assert_allclose(ours["kept"], expected["kept"], atol=1e-6)


def test_a_clip_without_frames_stays_finite(fill_variables):
    frames, log_mel = small_inputs(b=2, t=4)
    model, variables = make(fill_variables, mask_padded_frames=True)
    mask = jnp.array([[True] * 4, [False] * 4])
    assert np.isfinite(apply(model, variables, frames, log_mel, mask)["logits"]).all()


# ---------------------------------------------------------------- parameters

# Published counts, minus what the code never uses (ResNet's second branch and stage 4's second
# fusion convolution), without VGGish. 65 684 932 and 65 721 052 have 8 groups, 65 750 596 has 4.
UNUSED_FUSION = 3 * 3 * 256 * 256 + 256 + 2 * 256
UNUSED_BRANCH = 22_063_104
VGGISH = 72_141_184


@pytest.mark.parametrize(
    ("backbone", "num_classes", "groups", "published", "unused"),
    [
        ("pvt_v2_b5", 1, 8, 95_068_740, UNUSED_FUSION),
        ("pvt_v2_b5", 71, 8, 95_104_860, UNUSED_FUSION),
        ("resnet50", 1, 4, 65_750_596, UNUSED_FUSION + UNUSED_BRANCH),
        ("resnet50", 1, 8, 65_684_932, UNUSED_FUSION + UNUSED_BRANCH),
        ("resnet50", 71, 8, 65_721_052, UNUSED_FUSION + UNUSED_BRANCH),
    ],
)
def test_golden_parameter_counts(backbone, num_classes, groups, published, unused):
    model = models.get_model("pcmanet", backbone, num_classes, groups=groups)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *small_inputs(t=1, height=32, width=32))
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert count == published - unused + VGGISH


def test_unused_parameters_are_those_of_the_published_manifest():
    unused = {UNUSED_BRANCH: r"resnet\.layer[34]_2\..*", UNUSED_FUSION: r"gf4\.seq2\..*"}
    entries = fill.manifest("pcmanet_resnet50_s4")
    for count, pattern in unused.items():
        sizes = [
            int(np.prod(shape))
            for name, shape in entries.items()
            if re.fullmatch(pattern, name) and name.endswith(("weight", "bias"))
        ]
        assert sum(sizes) == count
