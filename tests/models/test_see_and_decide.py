"""Every model sees once and decides for any number of sounds; what training leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors, models
from avs_jax.models.forward import make_decide, make_forward, make_see

COMMON = {"backbone": "small_resnet", "audio_backbone": "audio_cnn", "dim": 16, "num_heads": 2}
AVESFORMER = {
    "pqg_layers": 1,
    "pqg_hidden": 16,
    "early_stages": 1,
    "late_stages": 1,
    "late_hidden": 16,
    "head_widths": (8, 8),
    "norm_groups": 4,
}
CATR = {
    "hidden": 16,
    "num_queries": 4,
    "decoder_layers": 1,
    "pixel_widths": (8, 8, 8, 8),
    "mask_dim": 8,
    "norm_groups": 4,
}
SMALL = {
    "avesformer": ("avesformer", AVESFORMER),
    "pcmanet": ("pcmanet", {"groups": 2, "head_width": 8}),
    "catr reference": ("catr", CATR | {"mode": "reference", "input_scale": 2}),
    "catr paper": ("catr", CATR | {"mode": "paper"}),
}
NORMALIZATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


def make_model(name, **fields):
    model, own = SMALL[name]
    return models.get_model(model, **COMMON | own | fields)


def make_batch(b=2, t=2, side=48, sound=0):
    frames = np.random.default_rng(0).integers(0, 256, (b, t, side, side, 3), np.uint8)
    waveform = np.random.default_rng(sound).normal(scale=0.1, size=(b, 16_000 * t))
    mask = np.arange(t) < np.array([[t], [t - 1]])
    return {
        "frames": jnp.asarray(frames),
        "waveform": jnp.float32(waveform),
        "frame_mask": jnp.asarray(mask),
    }


@functools.cache
def make(fill_variables, name):
    model = make_model(name)
    inputs = jnp.zeros((1, 2, 32, 32, 3)), jnp.zeros((1, 2, 96, 64))
    return model, fill_variables(model, *inputs)


def programs(model, size=32):
    return (
        make_see(model, normalization=NORMALIZATION, size=size),
        make_decide(model, size=size),
        make_forward(model, normalization=NORMALIZATION, size=size),
    )


def test_seen_once_and_decided_for_each_sound_is_the_forward_of_each(fill_variables, name):
    model, variables = make(fill_variables, name)
    see, decide, forward = map(jax.jit, programs(model))
    batches = [make_batch(sound=i) for i in (0, 1)]
    seen = see(variables, batches[0])
    answers = [decide(variables, seen, batch) for batch in batches]
    assert np.abs(answers[0] - answers[1]).max() > 1e-4
    # Five times what one program of them differs from itself by, compiled with or without XLA's
    # optimisation: CATR's reference multiplies by squared attention, where rounding grows.
    tolerance = 5e-5 if name == "catr reference" else 5e-6
    for answer, batch in zip(answers, batches, strict=True):
        expected = np.asarray(forward(variables, batch))
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(answer, expected, rtol=0, atol=atol)


def used(function, *arguments):
    """Paths of those arguments of `function` that its result depends on."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    _, kept = jax.interpreters.partial_eval.dce_jaxpr(
        jaxpr.jaxpr, [True] * len(jaxpr.out_avals), instantiate=False
    )
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(arguments)]
    return {path for path, is_kept in zip(paths, kept, strict=True) if is_kept}


def test_seeing_does_not_hear_and_deciding_does_not_look(fill_variables, name):
    model, variables = make(fill_variables, name)
    see, decide, _ = programs(model)
    batch = make_batch()
    eyes, ears = "['backbone']", "['audio_backbone']"
    seeing = used(see, variables, batch)
    assert not [path for path in seeing if ears in path or "waveform" in path]
    assert [path for path in seeing if eyes in path]
    deciding = used(decide, variables, jax.eval_shape(see, variables, batch), batch)
    assert not [path for path in deciding if eyes in path or "'frames'" in path]
    assert [path for path in deciding if ears in path]


def test_what_was_seen_at_another_size_is_refused(fill_variables):
    model, variables = make(fill_variables, "avesformer")
    see, _, _ = programs(model, size=64)
    _, decide, _ = programs(model, size=32)
    seen = jax.eval_shape(see, variables, make_batch())
    with pytest.raises(errors.BadValueError, match="seen at 64 x 64, but to be decided at 32 x 32"):
        jax.eval_shape(decide, variables, seen, make_batch())


# ---------------------------------------------------------------- what training leaves alone


def train(model, variables, frames, log_mel, frame_mask=None, key=0):
    """Outputs and new statistics of a step in training."""

    def call(variables, *inputs):
        return model.apply(
            variables,
            *inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(key)},
        )

    outputs, new = jax.jit(call)(variables, frames, log_mel, frame_mask)
    return outputs, new["batch_stats"]


def inputs(t=2, seed=0):
    rng = np.random.default_rng(seed)
    frames = jnp.float32(rng.normal(size=(2, t, 32, 32, 3)))
    return frames, jnp.float32(rng.uniform(-4, 1, (2, t, 96, 64)))


def moved(before, after):
    """Top-level parts whose statistics changed."""

    def differ(part):
        pairs = zip(*map(jax.tree.leaves, (before[part], after[part])), strict=True)
        return any(np.any(a != b) for a, b in pairs)

    return {part for part in before if differ(part)}


def test_frozen_parts_keep_their_statistics(fill_variables, name):
    model, variables = make(fill_variables, name)
    before = variables["batch_stats"]
    _, free = train(model, variables, *inputs())
    assert moved(before, free) == set(before)
    _, after = train(make_model(name, frozen=("backbone", "audio_backbone")), variables, *inputs())
    assert moved(before, after) == set(before) - {"backbone", "audio_backbone"}


def test_one_frozen_block_keeps_its_statistics_and_the_next_does_not(fill_variables):
    _, variables = make(fill_variables, "avesformer")
    before = variables["batch_stats"]["backbone"]
    for remat in ("none", "blocks"):  # whose wrapper must not hide the module's path
        model = make_model("avesformer", frozen=("backbone/layer1_0",), remat=remat)
        _, after = train(model, variables, *inputs())
        assert moved(before, after["backbone"]) == set(before) - {"layer1_0"}


def test_frozen_norm_moves_no_statistics(fill_variables, name):
    _, variables = make(fill_variables, name)
    _, after = train(make_model(name, norm="frozen"), variables, *inputs())
    assert moved(variables["batch_stats"], after) == set()


def test_frozen_parts_have_no_dropout(fill_variables):
    _, variables = make(fill_variables, "catr paper")
    parts = ("temporal0", "temporal1", "temporal2", "decoder0", "audio_dropout")

    def masks(frozen, key):
        model = make_model("catr paper", frozen=frozen, dropout=0.5)
        return train(model, variables, *inputs(), key=key)[0]["pred_masks"]

    np.testing.assert_array_equal(masks(parts, 0), masks(parts, 1))
    assert np.abs(masks(parts[:-2], 0) - masks(parts[:-2], 1)).max() > 1e-4


def padded(t=2):
    """Clips of t frames; the same and two frames more, which are no frames, and frame_mask."""
    short = inputs(t)
    long = [jnp.concatenate([x, jnp.full_like(x, 3.0)], axis=1) for x in short]
    return short, (*long, jnp.broadcast_to(jnp.arange(2 * t) < t, (2, 2 * t)))


MASKED = ["avesformer", "pcmanet", "catr reference", "catr paper"]


@pytest.mark.parametrize("name", MASKED)
def test_masked_padded_frames_enter_no_statistics_and_move_no_logit(fill_variables, name):
    _, variables = make(fill_variables, name)
    fields = {"dropout": 0.0} if name.startswith("catr") else {}
    model = make_model(name, mask_padded_frames=True, **fields)
    short, long = padded()
    outputs, statistics = train(model, variables, *long)
    expected, alone = train(model, variables, *short)
    for a, b in zip(*map(jax.tree.leaves, (statistics, alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    spread = np.std(expected["logits"])
    np.testing.assert_allclose(
        outputs["logits"][:, :2], expected["logits"], rtol=0, atol=2e-3 * spread
    )


def test_padding_is_masked_by_default_where_no_code_was_published():
    defaults = {name: make_model(name).mask_padded_frames for name in MASKED}
    assert defaults == dict(zip(MASKED, (True, False, False, False), strict=True))
