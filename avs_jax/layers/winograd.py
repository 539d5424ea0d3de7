"""3x3 convolutions with a quarter of the products, for CPUs: Winograd's F(4x4, 3x3).

A tile of 4 x 4 outputs reads 6 x 6 inputs. Both are seen as values at 6 x 6 points of a polynomial,
where a convolution is a product: 36 in place of 144 (Lavin and Gray, arXiv 1509.09308). The
transforms are products of matrices, too: 36 x 36 and 16 x 36 for whole tiles, which XLA for CPU
computes many times faster than their sums written out.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.types import Array, Float, Int

# Of 14 sets that were tried (256 channels, float32) these have the smallest error: 1.0e-5 of the
# outputs' deviation at most, root mean square 1.5e-6; 0, 1, -1, 2, -2 have 5.9e-5 and 3.3e-6.
_POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2.0), -math.sqrt(2.0))
_OUT, _TAPS, _IN = 4, 3, 6
# What is worth it (one core of a Xeon, family 6, model 207): below so many channels on a side the
# transforms cost what the products save; below so many cells, those of the kernel do, which is
# transformed in each call: 5 x 14 x 14 takes 0.7 of the time at 256 channels, but more at 1024.
_MIN_CHANNELS = 96
_MIN_CELLS = 1500
# Tiles at a time: about what stays in a core's cache, with 256 channels.
_TILES = 256
_START = 32  # what it costs to begin with a band, in tiles


def _make_transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32[36 36], [36 9], [16 36] for inputs, kernels and outputs, rows and columns at once."""
    inputs, kernels = np.zeros((_IN, _IN)), np.zeros((_IN, _TAPS))
    outputs = np.zeros((_OUT, _IN))
    for i, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        inputs[i, : _IN - 1] = np.poly(others)[::-1]
        kernels[i] = point ** np.arange(_TAPS) / np.prod([point - other for other in others])
        outputs[:, i] = point ** np.arange(_OUT)
    inputs[-1] = np.poly(_POINTS)[::-1]  # the point at infinity
    kernels[-1, -1] = outputs[-1, -1] = 1.0
    # Powers of two cost no accuracy, and keep both factors of a product of like size.
    scale = 2.0 ** np.round(np.log2(np.linalg.norm(inputs, axis=1, keepdims=True)))
    parts = inputs / scale, kernels * scale, outputs
    return tuple(np.kron(part, part).astype(np.float32) for part in parts)


_INPUTS, _KERNELS, _OUTPUTS = _make_transforms()


def is_worth_it(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c d"]) -> bool:
    """Whether it saves time on a CPU, by shapes alone; not where their numbers are yet open, as in
    an exported program for any number of clips."""
    n, height, width, _ = x.shape
    return (
        all(isinstance(side, int) for side in x.shape)
        and kernel.shape[:2] == (_TAPS, _TAPS)
        and x.dtype == kernel.dtype == jnp.float32
        and min(kernel.shape[2:]) >= _MIN_CHANNELS
        and n * height * width >= _MIN_CELLS
    )


class _Bands(NamedTuple):
    """How a map is cut: into `count` bands of `rows` rows of `columns` tiles each."""

    count: int
    rows: int
    columns: int

    def cut(
        self, x: Float[Array, "n h w c"], i: int | Int[Array, ""], border: int
    ) -> Float[Array, "n h2 w c"]:
        """Band i, and `border` rows of cells below it."""
        shape = (x.shape[0], self.rows * _OUT + border, *x.shape[2:])
        return jax.lax.dynamic_slice(x, (0, i * self.rows * _OUT, 0, 0), shape)


def _plan_bands(shape: tuple[int, ...]) -> _Bands:
    n, height, width, _ = shape
    rows, columns = -(-height // _OUT), -(-width // _OUT)

    def tiles(band):  # of all bands, what fills them up and the start of each included
        return -(-rows // band) * (band * n * columns + _START)

    band = min(range(1, max(1, min(rows, _TILES // (n * columns))) + 1), key=tiles)
    return _Bands(-(-rows // band), band, columns)


def _pad(x: Float[Array, "n h w c"], bands: _Bands, before: int, after: int):
    below = bands.count * bands.rows * _OUT - x.shape[1] + after
    right = bands.columns * _OUT - x.shape[2] + after
    return jnp.pad(x, ((0, 0), (before, below), (before, right), (0, 0)))


@jax.custom_vjp
def winograd_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "n h w d"]:
    """The convolution of stride 1 with a border of zeros, cut into bands of rows of tiles.

    Within a band are all frames: they may lie on several devices, which then meet for one number.
    """
    n, height, width, _ = x.shape
    bands = _plan_bands(x.shape)
    # Waits for x, else XLA transforms all kernels of a network first and keeps them.
    kernel = jnp.where(x[0, 0, 0, 0] == jnp.finfo(x.dtype).max, 0, kernel)
    kernels = jnp.dot(_KERNELS, kernel.reshape(_TAPS**2, -1))
    kernels = kernels.reshape(_IN**2, *kernel.shape[2:])
    x = _pad(x, bands, 1, _OUT - 1)

    def convolve_band(i):
        seen = _see_tiles(bands.cut(x, i, _OUT))
        products = jnp.einsum("pnc,pcd->pnd", seen, kernels).reshape(_IN**2, -1)
        made = (_OUTPUTS @ products).reshape(_OUT, _OUT, n, bands.rows, bands.columns, -1)
        return made.transpose(2, 3, 0, 4, 1, 5).reshape(n, bands.rows * _OUT, -1, kernel.shape[3])

    if bands.count == 1:
        return convolve_band(0)[:, :height, :width]

    def add_band(y, i):
        place = (0, i * bands.rows * _OUT, 0, 0)
        return jax.lax.dynamic_update_slice(y, convolve_band(i), place), None

    shape = (n, bands.count * bands.rows * _OUT, bands.columns * _OUT, kernel.shape[3])
    y = jax.lax.scan(add_band, jnp.zeros(shape, x.dtype), jnp.arange(bands.count))[0]
    return y[:, :height, :width]


def _as_tiles(x: Float[Array, "n h w c"]) -> Float[Array, "4 4 n rows columns c"]:
    n, height, width, channels = x.shape
    tiles = x.reshape(n, height // _OUT, _OUT, width // _OUT, _OUT, channels)
    return tiles.transpose(2, 4, 0, 1, 3, 5)


def _see_tiles(x: Float[Array, "n h w c"]) -> Float[Array, "36 tiles c"]:
    """The transformed inputs of tiles; x: these, and a row and a column of tiles more, whose first
    two cells are the last two inputs of those before."""
    tiles, rest = _as_tiles(x), _IN - _OUT
    # As four pieces, not as 36 slices: these take five times as long to compile.
    upper = [tiles[:, :, :, :-1, :-1], tiles[:, :rest, :, :-1, 1:]]
    lower = [tiles[:rest, :, :, 1:, :-1], tiles[:rest, :rest, :, 1:, 1:]]
    cells = jnp.concatenate([jnp.concatenate(pieces, 1) for pieces in (upper, lower)])
    return (_INPUTS @ cells.reshape(_IN**2, -1)).reshape(_IN**2, -1, x.shape[-1])


def _forward(x, kernel):
    return winograd_conv(x, kernel), (x, kernel)


def _backward(saved, dy):
    """dx is such a convolution with the kernel turned; the kernel's gradient is one of products,
    which XLA's own, a convolution with a window as large as the map, takes five times as long for
    (5 x 56 x 56 x 256: 160 ms, not 850).
    """
    x, kernel = saved
    dx = winograd_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    bands = _plan_bands(x.shape)
    x, dy = _pad(x, bands, 1, _OUT - 1), _pad(dy, bands, 0, 0)

    def add_band(total, i):
        seen = _see_tiles(bands.cut(x, i, _OUT))
        given = _OUTPUTS.T @ _as_tiles(bands.cut(dy, i, 0)).reshape(_OUT**2, -1)
        given = given.reshape(_IN**2, -1, dy.shape[-1])
        return total + jnp.einsum("pnc,pnd->pcd", seen, given), None

    total = jnp.zeros((_IN**2, *kernel.shape[2:]), x.dtype)
    total = jax.lax.scan(add_band, total, jnp.arange(bands.count))[0]
    return dx, (_KERNELS.T @ total.reshape(_IN**2, -1)).reshape(kernel.shape)


winograd_conv.defvjp(_forward, _backward)
