"""The losses against the reference's numbers, their definitions, and their behaviour at edges."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from avs_jax import errors
from avs_jax.layers import losses
from tests.parity.fill import uniform

EXPECTED = np.load(Path(__file__).parents[1] / "parity/expected/metrics.npz")


def _pcmanet_case(name, span):
    """The reference's frames of one subset: S4 keeps the first frame of both clips, MS3 all ten."""
    keep = slice(None, None, 5) if name == "s4" else slice(None)
    mask = uniform("metrics/loss_mask", (10, 1, 56, 56)) > 0.5
    logits = uniform("metrics/loss_logits", (10, 1, 56, 56), -span, span)

    def loss(logits):
        x, y = logits[keep, 0], jnp.asarray(mask[keep, 0], jnp.float32)
        return (losses.bce_clamped(x, y) + losses.soft_iou(x, y)).mean()

    return jnp.asarray(logits), loss


@pytest.mark.parametrize("name", ["s4", "ms3"])
@pytest.mark.parametrize(("range_", "span"), [("moderate", 6), ("extreme", 40)])
def test_clamped_bce_and_iou_equal_pcmanet(name, range_, span):
    logits, loss = _pcmanet_case(name, span)
    np.testing.assert_allclose(loss(logits), EXPECTED[f"loss/{name}/{range_}"], rtol=1e-6)


@pytest.mark.parametrize("name", ["s4", "ms3"])
@pytest.mark.parametrize(("range_", "span"), [("moderate", 6), ("extreme", 40)])
def test_gradients_of_clamped_bce_and_iou_equal_pcmanet(name, range_, span):
    logits, loss = _pcmanet_case(name, span)
    gradient = np.asarray(jax.jit(jax.grad(loss))(logits))[:, :, ::9, ::9]
    np.testing.assert_allclose(gradient, EXPECTED[f"loss/{name}/{range_}/grad"], rtol=1e-5)


@pytest.mark.parametrize(
    ("subset", "weights"), [("v1s", [1] + [0] * 9), ("v1m", [1] * 5 + [0] * 5), ("v2", [1] * 10)]
)
def test_weighted_cross_entropy_equals_the_reference(subset, weights):
    logits = uniform("metrics/loss_avss_logits", (10, 71, 24, 24), -5, 5)
    label = np.minimum(uniform("metrics/loss_avss_label", (10, 24, 24), 0, 71), 70).astype(np.int32)

    def loss(logits):
        frames = losses.cross_entropy(jnp.moveaxis(logits, 1, -1), jnp.asarray(label))
        return losses.weighted_mean(frames, jnp.asarray(weights))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, EXPECTED[f"loss/avss/{subset}"], rtol=1e-6)
    norms = np.linalg.norm(np.asarray(gradient).reshape(10, -1), axis=1)
    np.testing.assert_allclose(
        norms, EXPECTED[f"loss/avss/{subset}/grad_norm_per_frame"], rtol=1e-5
    )


def _random(seed=0, shape=(2, 3, 8, 8)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape).astype(np.float32) * 3
    return jnp.asarray(logits), jnp.asarray(rng.random(shape) > 0.6, jnp.float32)


def test_stable_bce_equals_the_clamped_one_at_moderate_logits():
    x, y = _random()
    np.testing.assert_allclose(losses.bce_with_logits(x, y), losses.bce_clamped(x, y), rtol=1e-5)


def test_stable_bce_keeps_a_gradient_where_the_sigmoid_saturates():
    gradient = jax.grad(lambda x: losses.bce_with_logits(x, jnp.zeros((1, 1, 1))).sum())
    np.testing.assert_allclose(gradient(jnp.full((1, 1, 1), 40.0)), 1.0)


def test_dice_is_its_definition():
    x, y = _random()
    p, t = 1 / (1 + np.exp(-np.asarray(x, np.float64))), np.asarray(y)
    inter, area = (p * t).sum((-2, -1)), (p + t).sum((-2, -1))
    np.testing.assert_allclose(losses.dice(x, y), 1 - (2 * inter + 1) / (area + 1), rtol=1e-5)


def test_focal_is_its_definition():
    x, y = _random()
    p, t = 1 / (1 + np.exp(-np.asarray(x, np.float64))), np.asarray(y)
    positive = -0.25 * (1 - p) ** 2 * np.log(p)
    negative = -0.75 * p**2 * np.log(1 - p)
    expected = np.where(t > 0, positive, negative).mean((-2, -1))
    np.testing.assert_allclose(losses.focal(x, y), expected, rtol=1e-4)


def test_dice_present_ignores_classes_without_a_labelled_pixel():
    label = jnp.asarray([[[0, 0], [2, 2]]])
    perfect = 40.0 * jax.nn.one_hot(label, 5)
    np.testing.assert_allclose(losses.dice_present(perfect, label), [0.0], atol=1e-6)
    wrong = perfect.at[..., 4].add(80.0)  # all of it on a class that is not there
    np.testing.assert_allclose(losses.dice_present(wrong, label), [1 - 1 / 3], atol=1e-6)


@pytest.mark.parametrize(
    "loss", [losses.bce_with_logits, losses.bce_clamped, losses.soft_iou, losses.dice, losses.focal]
)
def test_half_precision_logits_give_float32_losses(loss):
    x, y = _random()
    value = loss(x.astype(jnp.bfloat16), y)
    assert value.dtype == jnp.float32 and value.shape == (2, 3)
    np.testing.assert_allclose(value, loss(x.astype(jnp.bfloat16).astype(jnp.float32), y))


def test_weighted_mean_without_weights_is_zero_with_zero_gradient():
    values, gradient = jax.value_and_grad(lambda v: losses.weighted_mean(v, jnp.zeros(3)))(
        jnp.ones(3)
    )
    assert values == 0 and not gradient.any()


def test_weighted_mean_never_looks_at_values_without_weight():
    values = jnp.asarray([1.0, jnp.nan, 3.0])
    assert losses.weighted_mean(values, jnp.asarray([True, False, True])) == 2.0


@pytest.mark.parametrize("targets", [1, 2, 5])
def test_match_is_the_optimal_assignment(targets):
    cost = np.random.default_rng(targets).normal(size=(2, 3, targets, 9)).astype(np.float32)
    chosen = np.asarray(jax.jit(losses.match)(jnp.asarray(cost)))
    assert chosen.shape == (2, 3, targets) and chosen.dtype == np.int32
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(chosen[index], linear_sum_assignment(cost[index])[1])


def test_match_ends_on_nan_costs():
    cost = jnp.full((1, 3, 4), jnp.nan)
    assert len(set(np.asarray(losses.match(cost))[0].tolist())) == 3


def test_match_refuses_more_targets_than_queries():
    with pytest.raises(errors.BadValueError, match=r"3 targets .* among 2; give the model more"):
        losses.match(jnp.zeros((1, 3, 2)))
