"""Logits -> masks and probabilities of another size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.prediction import masks


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("size", [(50, 70), (9, 11)])
def test_masks_from_logits_are_those_of_resized_logits(classes, size):
    logits = np.random.default_rng(0).normal(size=(2, 3, 16, 20, classes)).astype(np.float32)
    resized = jax.image.resize(
        jnp.asarray(logits), (2, 3, *size, classes), "bilinear", antialias=False
    )
    expected = resized[..., 0] > 0 if classes == 1 else resized.argmax(-1)
    found = masks.masks_from_logits(jnp.asarray(logits), *size)
    # Two sums of rounded products may fall on either side of a tie.
    assert (np.asarray(found) != np.asarray(expected)).mean() < 1e-3


@pytest.mark.parametrize("classes", [1, 5])
def test_probabilities_are_of_any_class_but_background(classes):
    logits = np.random.default_rng(0).normal(size=(1, 2, 8, 8, classes)).astype(np.float32)
    found = masks.probabilities_from_logits(jnp.asarray(logits), 8, 8)
    exp = np.exp(logits)
    expected = exp / (1 + exp) if classes == 1 else 1 - exp[..., :1] / exp.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected[..., 0], atol=1e-6)


def test_a_mask_is_where_the_probability_is_above_the_threshold():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 8, 8, 1)), jnp.float32)
    marked = np.asarray(masks.masks_from_logits(logits, 20, 30, 0.3))
    assert (marked == (np.asarray(masks.probabilities_from_logits(logits, 20, 30)) > 0.3)).all()
