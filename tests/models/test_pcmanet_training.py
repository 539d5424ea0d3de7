"""How PCMANet learns: which parameters, from which frames, by which losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax import models
from avs_jax.layers import losses
from avs_jax.models import pcmanet
from tests.models.small_pcmanet import (
    CORRECTED,
    QUICK,
    SMALL,
    make,
    padded,
    small_inputs,
    train,
)

# ---------------------------------------------------------------- gradients


@functools.cache
def compiled_gradient(model):
    def total(params, statistics, frames, log_mel):
        outputs = model.apply({"params": params, "batch_stats": statistics}, frames, log_mel)
        target = jnp.arange(outputs["logits"].size).reshape(outputs["logits"].shape[:-1]) % 3 == 0
        entropies = (
            losses.bce_with_logits(x[..., 0], target.astype(jnp.float32))
            for x in outputs["outputs"]
        )
        return sum(x.sum() for x in entropies)

    return jax.jit(jax.grad(total), compiler_options=QUICK)


def gradient_of(model, variables, frames, log_mel):
    """Of binary cross-entropies of the four outputs against stripes, in evaluation mode."""
    gradient = compiled_gradient(model)
    return gradient(variables["params"], variables["batch_stats"], frames, log_mel)


def test_rematerialisation_changes_no_gradient(fill_variables):
    inputs = small_inputs(t=2)
    model, variables = make(fill_variables)
    again = models.get_model("pcmanet", **SMALL, remat=True)
    grads = [gradient_of(m, variables, *inputs) for m in (model, again)]
    for x, y in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def without_gradient(gradient):
    flat = traverse_util.flatten_dict(gradient, sep="/")
    return {name for name, x in flat.items() if not np.any(x)}


# What the published code never teaches (evaluation mode: biases in front of BatchNorm do learn).
CUT = {f"qsca{k}/audio_fc/{leaf}" for k in (1, 2, 3) for leaf in ("kernel", "bias")}
CUT |= {f"qsca{k}/attention/norm/{leaf}" for k in (1, 2, 3) for leaf in ("scale", "bias")}
CUT |= {
    f"qsca{k}/attention/{name}/kernel"
    for k in (1, 2, 3)
    for name in ("v_to_q", "v_to_kv", "a_to_qkv")
}
CUT |= {"qsca4/attention/v_to_kv/kernel"}  # its only way on is the audio token
CORRECTED_CUT = {"qsca1/attention/v_to_kv/kernel"}  # no stage is left to hear stage 1's token


def test_every_published_parameter_learns_but_the_named_ones(fill_variables):
    inputs = small_inputs(t=2)
    model, variables = make(fill_variables, seed=1)
    assert without_gradient(gradient_of(model, variables, *inputs)) == CUT


def test_every_corrected_parameter_learns_but_one(fill_variables):
    inputs = small_inputs(t=2)
    model, variables = make(fill_variables, seed=1, **CORRECTED)
    assert without_gradient(gradient_of(model, variables, *inputs)) == CORRECTED_CUT


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("remat", [False, True])
def test_corrected_padded_frames_enter_no_statistics(fill_variables, remat):
    short, long = padded(1.0)
    fields = {"mask_padded_frames": True}
    model, variables = make(fill_variables, **fields)
    _, expected = train(model, variables, *short)
    _, ours = train(models.get_model("pcmanet", **SMALL, **fields, remat=remat), variables, *long)
    for x, y in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- losses


def make_batch(label, label_mask=None):
    shape = label.shape[:2]
    label_mask = np.ones(shape, bool) if label_mask is None else label_mask
    batch = {"label": label, "label_mask": label_mask, "frame_mask": np.ones(shape, bool)}
    return jax.tree.map(jnp.asarray, batch)


def fake_outputs(k, b=2, t=3, size=8, seed=0):
    logits = np.random.default_rng(seed).normal(size=(4, b, t, size, size, k)).astype(np.float32)
    outputs = tuple(jnp.asarray(x) for x in logits)
    masks = tuple(jnp.zeros((b, t, side, side), bool) for side in (1, 2, 4))
    return {"outputs": outputs, "logits": outputs[0], "masks": masks}


def compute_loss(outputs, batch, **weights):
    """-> total, {name: mean}."""
    terms = pcmanet.loss(outputs, batch, **weights)
    return losses.total(terms), losses.means(terms)


def test_binary_loss_is_clamped_entropy_and_soft_iou_summed_over_four_outputs():
    outputs = fake_outputs(1)
    label = np.random.default_rng(1).integers(0, 5, (2, 3, 8, 8)).astype(np.int32)
    total, parts = compute_loss(outputs, make_batch(label))
    expected = []
    for logits in outputs["outputs"]:
        p, y = 1 / (1 + np.exp(-np.float64(logits[..., 0]))), label > 0
        entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        inter, both = (p * y).sum((2, 3)), (p + y).sum((2, 3))
        expected.append(entropy + (1 - (inter + 1) / (both - inter + 1)).mean())
    np.testing.assert_allclose([parts[f"output{i}"] for i in (1, 2, 3, 4)], expected, rtol=1e-5)
    np.testing.assert_allclose(total, sum(expected), rtol=1e-5)


def test_only_labelled_frames_count():
    label = np.ones((2, 3, 8, 8), np.int32)
    first = np.arange(3) == np.zeros((2, 1))
    outputs = fake_outputs(1)
    total, _ = compute_loss(outputs, make_batch(label, first))
    outputs["outputs"] = tuple(x.at[:, 1:].set(50.0) for x in outputs["outputs"])
    assert compute_loss(outputs, make_batch(label, first))[0] == total


def test_loss_with_classes_is_cross_entropy_over_labelled_frames():
    outputs = fake_outputs(5)
    label = np.random.default_rng(1).integers(0, 5, (2, 3, 8, 8)).astype(np.int32)
    mask = np.array([[True, False, False], [True, True, True]])
    total, _ = compute_loss(outputs, make_batch(label, mask))
    expected = 0.0
    for logits in outputs["outputs"]:
        log_p = jax.nn.log_softmax(logits)
        right = np.take_along_axis(np.asarray(log_p), label[..., None], axis=-1)[..., 0]
        expected += -right.mean((2, 3))[mask].mean()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_stage_weights_weigh_the_outputs():
    outputs, batch = fake_outputs(1), make_batch(np.ones((2, 3, 8, 8), np.int32))
    total, parts = compute_loss(outputs, batch, stage_weights=(0.0, 0.0, 2.0, 0.0))
    np.testing.assert_allclose(total, 2 * parts["output3"], rtol=1e-6)


def test_shares_of_kept_tokens_are_logged():
    outputs, batch = fake_outputs(1), make_batch(np.ones((2, 3, 8, 8), np.int32))
    batch["frame_mask"] = batch["frame_mask"].at[:, 2].set(False)  # they do not count
    masks = [mask.at[:, 0].set(True).at[:, 2].set(True) for mask in outputs["masks"]]
    masks[0] = masks[0].at[:, 1].set(True)
    _, parts = compute_loss(outputs | {"masks": tuple(masks)}, batch)
    assert [float(parts[f"kept{k}"]) for k in (4, 3, 2)] == [1.0, 0.5, 0.5]


def test_auxiliary_heads_speak_in_training(fill_variables):
    inputs = small_inputs()
    model, variables = make(fill_variables, num_tags=4, num_semantic=4)
    outputs, _ = train(model, variables, *inputs)
    assert outputs["tags"].shape == (1, 3, 4) and outputs["semantic"].shape == (1, 3, 8, 8, 4)
    label = np.random.default_rng(1).integers(0, 5, (1, 3, 64, 64)).astype(np.int32)
    base, parts = compute_loss(outputs, make_batch(label))
    total, _ = compute_loss(outputs, make_batch(label), tag_weight=2.0, semantic_weight=0.5)
    np.testing.assert_allclose(
        total, base + 2.0 * parts["tags"] + 0.5 * parts["semantic"], rtol=1e-5
    )


def test_auxiliary_heads_are_silent_in_evaluation():
    model = models.get_model("pcmanet", **SMALL, num_tags=4, num_semantic=4)
    inputs = small_inputs(t=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert "tags" in shapes["params"]["auxiliary"]
    assert not {"tags", "semantic"} & set(jax.eval_shape(model.apply, shapes, *inputs))
