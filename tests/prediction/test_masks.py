"""Logits -> masks and probabilities of another size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.prediction import masks
from tests.weights.zoo import stand_in


def decide(logits, height, width, **settings):
    decision = masks.Decision(height, width, **settings)
    begun = np.asarray(decision.begin(jnp.asarray(logits)))
    return np.stack([decision.finish(clip, logits.shape[-1] == 1) for clip in begun])


def make_logits(classes, size=(16, 20)):
    return np.random.default_rng(0).normal(size=(2, 3, *size, classes)).astype(np.float32)


def resize(logits, size):
    shape = (*logits.shape[:2], *size, logits.shape[-1])
    return np.asarray(jax.image.resize(logits, shape, "bilinear", antialias=False))


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("size", [(50, 70), (9, 11), (16, 20)])
def test_masks_are_those_of_resized_logits(classes, size):
    logits = make_logits(classes)
    resized = resize(logits, size)
    expected = resized[..., 0] > 0 if classes == 1 else resized.argmax(-1)
    found = decide(logits, *size)
    assert found.dtype == np.uint8
    # Two sums of rounded products may fall on either side of a tie.
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("size", [(50, 70), (9, 11)])
def test_probabilities_are_of_any_class_but_background(classes, size):
    logits = make_logits(classes)
    exp = np.exp(resize(logits, size).astype(np.float64))
    expected = exp / (1 + exp) if classes == 1 else 1 - exp[..., :1] / exp.sum(-1, keepdims=True)
    found = decide(logits, *size, probabilities=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[..., 0], atol=2e-6)


def test_a_mask_is_where_the_probability_is_above_the_threshold():
    logits = make_logits(1)
    marked = decide(logits, 20, 30, threshold=0.3)
    assert (marked == (decide(logits, 20, 30, probabilities=True) > 0.3)).all()


def test_frames_that_a_model_looks_at_alone_give_the_same_one_after_the_other():
    loaded = stand_in.make_loaded()._replace(temperature=2.0)
    assert masks.looks_at_frames_alone(loaded)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    sound = rng.uniform(-0.5, 0.5, (2, 32_000)).astype(np.float32)
    exists = np.array([[True, True], [True, False]])
    found = np.asarray(masks.compile_forward(loaded)(frames, sound, exists))
    batch = {"frames": frames, "waveform": sound, "frame_mask": exists}
    expected = np.asarray(jax.jit(masks.make_calibrated(loaded))(loaded.variables, batch))
    np.testing.assert_allclose(found[exists], expected[exists], atol=1e-4)
    assert not found[~exists].any()  # nothing is computed for what pads a clip
