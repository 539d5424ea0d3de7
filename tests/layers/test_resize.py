"""Resizing and position codes."""

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.layers.positions import sine_positions_2d
from avs_jax.layers.resize import resize_bilinear


@pytest.mark.parametrize("size", [(14, 10), (28, 3), (3, 28), (7, 5), (4, 4)])
def test_bilinear_equals_torch(torch, size):
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False
    )
    ours = resize_bilinear(jnp.asarray(x), size)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_same_size_is_untouched():
    x = jnp.ones((1, 4, 4, 2))
    assert resize_bilinear(x, (4, 4)) is x


def test_positions_tell_every_pixel_apart():
    code = np.asarray(sine_positions_2d(6, 9, 32)).reshape(54, 32)
    distance = np.abs(code[:, None] - code[None]).max(-1) + np.eye(54)
    assert distance.min() > 1e-3


def test_positions_are_those_of_detr():
    # y = 2 of 4 rows: angle 2 / 4 * 2 pi = pi; frequency 1 for the first pair of channels.
    code = sine_positions_2d(4, 3, 8)
    np.testing.assert_allclose(code[1, 0, :2], [np.sin(np.pi), np.cos(np.pi)], atol=1e-4)
    # channels 2, 3: temperature ** (2 / 4) = 100; x comes in the second half.
    np.testing.assert_allclose(code[1, 0, 2], np.sin(np.pi / 100), atol=1e-4)
    np.testing.assert_allclose(code[0, 2, 4:6], [0.0, 1.0], atol=1e-4)  # x = 3 of 3: 2 pi
