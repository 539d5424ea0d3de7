"""J and F against the DAVIS evaluation code's numbers, and against their definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from avs_jax.scoring import boundary
from tests.parity.fill import uniform


def _ellipses(name, height, width):
    """Six masks bool[6 h w]."""
    extent = np.asarray([height, width, height / 2, width / 2], np.float32)
    cy, cx, ry, rx = (uniform(name, (4, 6)) * extent[:, None])[..., None, None]
    y, x = np.mgrid[:height, :width]
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1


def _case(height, width):
    """(predicted, target): ellipses, moved by (1, -2), every other one damaged; some empty."""
    name = f"boundary/{height}x{width}"
    target = _ellipses(name, height, width)
    odd = (np.arange(6) % 2 == 1)[:, None, None]
    predicted = np.roll(target, (1, -2), (1, 2)) ^ (_ellipses(f"{name}/error", height, width) & odd)
    target[4] = False
    predicted[5] = False
    if height == 40:
        target[3] = predicted[3] = False
    return predicted, target


# size -> F, J of `_case`, computed with the code of davis2017-evaluation (db_eval_boundary,
# db_eval_iou) as packaged in esdft-segmetric 0.1.0, scikit-image 0.26
EXPECTED = {
    (40, 60): (
        [0.3665414, 0.6395349, 0.7, 1.0, 0.0, 0.0],
        [0.4022989, 0.6319018, 0.7922535, 1.0, 0.0, 0.0],
    ),
    (96, 54): (
        [0.3605769, 0.0759494, 0.2645503, 0.1716411, 0.0, 0.0],
        [0.8695238, 0.1379076, 0.8648449, 0.6105675, 0.0, 0.0],
    ),
    (224, 224): (
        [0.9079365, 0.6896552, 1.0, 0.5884718, 0.0, 0.0],
        [0.9327608, 0.4739678, 0.752495, 0.0141159, 0.0, 0.0],
    ),
    (150, 400): (
        [0.7733333, 0.8054953, 0.7427059, 0.6115556, 0.0, 0.0],
        [0.9498705, 0.3904485, 0.9299475, 0.6572476, 0.0, 0.0],
    ),
}


@pytest.mark.parametrize("size", EXPECTED)
def test_boundary_accuracy_equals_davis(size):
    found = boundary.boundary_accuracy(*map(jnp.asarray, _case(*size)))
    np.testing.assert_allclose(found, EXPECTED[size][0], atol=1e-6)


@pytest.mark.parametrize("size", EXPECTED)
def test_region_similarity_equals_davis(size):
    found = boundary.region_similarity(*map(jnp.asarray, _case(*size)))
    np.testing.assert_allclose(found, EXPECTED[size][1], atol=1e-6)


@given(st.integers(0, 2**16), st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_dilation_reaches_as_far_as_the_distance_says(seed, radius):
    mask = np.random.default_rng(seed).random((9, 7)) > 0.95
    pixels = np.argwhere(np.ones_like(mask))
    seeds = np.argwhere(mask)
    near = np.zeros(mask.size, bool)
    if len(seeds):
        near = cdist(pixels, seeds).min(1) <= radius
    found = boundary.dilate(jnp.asarray(mask), radius)
    np.testing.assert_array_equal(found, near.reshape(mask.shape))


def test_outline_of_a_square_is_one_pixel_wide():
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:4] = True
    expected = np.zeros((6, 6), bool)
    expected[1:4, 1:4] = True
    expected[2, 2] = False
    np.testing.assert_array_equal(boundary.outline(jnp.asarray(mask)), expected)


def test_full_mask_has_no_outline():
    assert not boundary.outline(jnp.ones((1, 5, 5), bool)).any()


@pytest.mark.parametrize("measure", [boundary.boundary_accuracy, boundary.region_similarity])
def test_two_empty_masks_agree(measure):
    empty = jnp.zeros((1, 8, 8), bool)
    assert measure(empty, empty)[0] == 1


@given(st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_boundary_accuracy_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    a, b = jnp.asarray(rng.random((2, 1, 12, 12)) > 0.5)
    np.testing.assert_allclose(
        boundary.boundary_accuracy(a, b), boundary.boundary_accuracy(b, a), rtol=1e-6
    )
