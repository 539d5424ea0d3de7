"""3x3 convolutions by products of transformed tiles, against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import devices
from avs_jax.benchmarking.messages import count_messages
from avs_jax.layers import winograd
from avs_jax.layers.winograd import is_worth_it, winograd_conv

# Of a sum of 9 * channels products of normal numbers, in parts of its deviation: 2e-5 was seen with
# 256 channels, and XLA's own convolution differs from float64 by 2e-6.
TOLERANCE = 3e-5


def inputs(shape=(3, 13, 18, 24), width=16):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    kernel = jax.random.normal(keys[1], (3, 3, shape[-1], width)) / np.sqrt(9 * shape[-1])
    return x, kernel, jax.random.normal(keys[2], (*shape[:-1], width))


def plain(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


@pytest.fixture(params=[256, 12], ids=["one band", "several bands"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(winograd, "_TILES", request.param)


# Multiples of a tile, less than one, one cell more or less, a long one, one whose bands are uneven.
SIZES = [(8, 8), (1, 1), (3, 2), (9, 7), (4, 21), (13, 18), (20, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_is_the_convolution(size, tiles):
    x, kernel, _ = inputs((3, *size, 24))
    np.testing.assert_allclose(winograd_conv(x, kernel), plain(x, kernel), atol=TOLERANCE)


@pytest.mark.parametrize("size", [(8, 8), (3, 2), (13, 18)])
def test_gradients_are_the_convolution_s(size, tiles):
    x, kernel, dy = inputs((3, *size, 24))
    ours = jax.jit(lambda *inputs: jax.vjp(winograd_conv, *inputs)[1](dy))(x, kernel)
    for gradient, expected in zip(ours, jax.vjp(plain, x, kernel)[1](dy), strict=True):
        scale = float(expected.std())
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=2 * TOLERANCE)


def test_error_stays_small_with_many_channels():
    x, kernel, _ = inputs((2, 16, 16, 512), 256)
    y, expected = jax.jit(winograd_conv)(x, kernel), plain(x, kernel)
    assert float(jnp.abs(y - expected).max() / expected.std()) < TOLERANCE


def test_what_is_not_finite_stays_in_its_frame_and_about_its_place(tiles):
    x, kernel, _ = inputs((2, 16, 16, 24))
    y = winograd_conv(x.at[0, 0, 0, 0].set(jnp.nan), kernel)
    assert bool(jnp.isnan(y[0, 0, 0]).all())
    assert bool(jnp.isfinite(y[0, 8:]).all())
    assert bool(jnp.isfinite(y[1]).all())


def test_frames_stay_on_their_devices(tiles):
    mesh = devices.make_mesh()
    x, kernel, _ = inputs((8, 12, 9, 24))
    shardings = devices.batch_sharding(mesh), devices.replicated(mesh)
    compiled = jax.jit(winograd_conv, in_shardings=shardings).lower(x, kernel).compile()
    assert sum(size for _, size in count_messages(compiled.as_text()).values()) <= 8  # bytes
    y = compiled(*jax.device_put((x, kernel), shardings))
    np.testing.assert_allclose(y, plain(x, kernel), atol=TOLERANCE)


@pytest.mark.parametrize(
    "shape, width, expected",
    [
        ((5, 56, 56, 256), 256, True),
        ((5, 28, 28, 128), 128, True),
        ((5, 7, 7, 2048), 256, False),  # its kernel is dearer to transform than the products are
        ((5, 56, 56, 64), 64, False),
        ((5, 56, 56, 256), 1, False),
    ],
)
def test_is_taken_where_it_saves_time(shape, width, expected):
    x, kernel = jnp.zeros(shape), jnp.zeros((3, 3, shape[-1], width))
    assert is_worth_it(x, kernel) is expected
    assert not is_worth_it(x.astype(jnp.bfloat16), kernel)
