"""Convolutions as fast as the platform has them: full, depthwise, of patches, and dilated ones."""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from avs_jax import errors
from avs_jax.layers.winograd import is_worth_it, winograd_conv
from avs_jax.types import Array, Float

_MOSTLY = 0.7  # of what a kernel's taps are put on; measured, see `convolve`
_FAST = (None, "default")  # of jax.default_matmul_precision: accelerators round more then, too


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c2 d"],
    window_strides: tuple[int, ...],
    padding: Any,
    **rest: Any,
) -> Float[Array, "n h2 w2 d"]:
    """`lax.conv_general_dilated` for `nn.Conv`, by products on CPU where that is faster.

    1x1: one product. XLA's gradient of such a kernel is a convolution with a window as large as the
    map, for which it lays both maps out anew (140 ms, not 14, for 5 x 56 x 56, 256 to 128).

    3x3 without a stride: `winograd_conv`, in half the time. It differs by 2e-5 of the outputs'
    deviation, as TF32 and bfloat16 passes differ elsewhere, and is not taken where
    `jax.default_matmul_precision` asks for "high" or more.

    3x3, dilated so far that its taps mostly see padding: a product per tap of what it does see, in
    a fifth of the time where that is little (12 far, 14 x 14 cells), gradients too.
    """

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **rest)

    def of_points(x, kernel):
        rows, columns = window_strides
        x = x[:, ::rows, ::columns]
        y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=rest.get("precision"))
        return y.reshape(*x.shape[:-1], -1)

    spread, far = (rest.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation"))
    if rest.get("feature_group_count", 1) > 1 or set(spread) != {1}:
        return plain(x, kernel)
    width = [1 + (k - 1) * step for k, step in zip(kernel.shape[:2], far, strict=True)]
    named = isinstance(padding, str)
    pads = (
        jax.lax.padtype_to_pads(x.shape[1:3], width, window_strides, padding) if named else padding
    )
    if kernel.shape[:2] == (1, 1) and not np.any(pads):
        return jax.lax.platform_dependent(x, kernel, cpu=of_points, default=plain)
    around = [tuple(pair) for pair in pads] == [(step, step) for step in far]
    if kernel.shape[:2] != (3, 3) or set(window_strides) != {1} or not around:
        return plain(x, kernel)
    if set(far) != {1}:
        if _visible_share(x.shape[1:3], far) > _MOSTLY:
            return plain(x, kernel)
        taps = partial(_visible_taps, far=far, precision=rest.get("precision"))
        return jax.lax.platform_dependent(x, kernel, cpu=taps, default=plain)
    fast = jax.config.jax_default_matmul_precision in _FAST and rest.get("precision") is None
    if fast and is_worth_it(x, kernel):
        return jax.lax.platform_dependent(x, kernel, cpu=winograd_conv, default=plain)
    return plain(x, kernel)


def _visible_share(size: tuple[int, int], far: tuple[int, int]) -> float:
    """Of the cells that the taps of a 3x3 kernel are put on, those that are not padding."""
    seen = (n + 2 * max(n - step, 0) for n, step in zip(size, far, strict=True))
    return math.prod(seen) / (9 * math.prod(size))


def _visible_taps(x: Array, kernel: Array, far: tuple[int, int], precision: Any) -> Array:
    """A 3x3 convolution whose taps are `far` apart, padded as far: a product for each tap, of the
    cells that it is put on."""
    height, width = x.shape[1:3]

    def put(row, column):
        down, right = (row - 1) * far[0], (column - 1) * far[1]
        rows = slice(max(-down, 0), min(height - down, height))
        columns = slice(max(-right, 0), min(width - right, width))
        seen = x[:, rows.start + down : rows.stop + down]
        seen = seen[:, :, columns.start + right : columns.stop + right]
        y = jnp.dot(
            seen.reshape(-1, x.shape[-1]),
            kernel[row, column],
            precision=precision,
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        around = (0, 0), (rows.start, height - rows.stop), (columns.start, width - columns.stop)
        return jnp.pad(y.reshape(*seen.shape[:-1], -1), (*around, (0, 0)))

    taps = [(0, 0)] + [pair for pair in itertools.product((-1, 0, 1), repeat=2) if any(pair)]
    seeing = [(i, j) for i, j in taps if abs(i) * far[0] < height and abs(j) * far[1] < width]
    return sum(put(1 + i, 1 + j) for i, j in seeing).astype(x.dtype)


Conv = partial(nn.Conv, conv_general_dilated=convolve)


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow and XLA mean "SAME": an odd one goes behind."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def _padding(x: Array, kernel: Array, stride: int) -> list[tuple[int, int]]:
    return [same_padding(x.shape[1 + i], kernel.shape[i], stride) for i in (0, 1)]


def _depthwise_taps(x: Array, kernel: Array, stride: int) -> Array:
    """Sum of shifted copies, each times one tap: XLA fuses them into a single pass on CPU."""
    height, width = (-(-length // stride) for length in x.shape[1:3])
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *_padding(x, kernel, stride), (0, 0)))

    def shifted(i, j):
        last = (i + stride * (height - 1) + 1, j + stride * (width - 1) + 1)
        return x[:, i : last[0] : stride, j : last[1] : stride]

    return sum(shifted(i, j) * kernel[i, j, 0] for i in range(rows) for j in range(columns))


@jax.custom_vjp
def _depthwise_taps_in_place(x: Array, kernel: Array) -> Array:
    """`_depthwise_taps` without a stride, of a kernel of odd sides.

    The kernel's gradient goes through the maps row by row, for all taps at once: as autodiff has
    it, every tap reads both maps anew (66 ms, not 21, for 5 x 28 x 28 x 512).
    """
    return _depthwise_taps(x, kernel, 1)


def _depthwise_forward(x, kernel):
    return _depthwise_taps(x, kernel, 1), (x, kernel)


def _depthwise_backward(saved, dy):
    x, kernel = saved
    (rows, columns), (n, height, width, channels) = kernel.shape[:2], dy.shape
    padded = jnp.pad(x, ((0, 0), *_padding(x, kernel, 1), (0, 0)))
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add_row(sums, i):
        seen = jax.lax.dynamic_slice_in_dim(padded, i, rows, 1).astype(wide)
        given = jax.lax.dynamic_index_in_dim(dy, i, 1, keepdims=False).astype(wide)

        def tap(row, column):
            return (seen[:, row, column : column + width] * given).sum(1)

        taps = [tap(row, column) for row in range(rows) for column in range(columns)]
        return sums + jnp.stack(taps, 1), None

    # A sum per frame: frames may lie on several devices, which then meet once and not in each row.
    sums = jnp.zeros((n, rows * columns, channels), wide)
    sums = jax.lax.scan(add_row, sums, jnp.arange(height))[0].sum(0)
    turned = kernel[::-1, ::-1]
    return _depthwise_taps(dy, turned, 1), sums.reshape(kernel.shape).astype(kernel.dtype)


_depthwise_taps_in_place.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_by_taps(x: Array, kernel: Array, stride: int) -> Array:
    if stride == 1 and all(size % 2 for size in kernel.shape[:2]):
        return _depthwise_taps_in_place(x, kernel)
    return _depthwise_taps(x, kernel, stride)


def _depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=_padding(x, kernel, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


_METHODS = {"taps": _depthwise_by_taps, "conv": _depthwise_conv}


def depthwise_conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    method: str = "auto",
    stride: int = 1,
) -> Float[Array, "n h2 w2 c"]:
    """Each channel with its own kernel, zero padding to ceil(size / stride) as by "SAME".

    `method`: "conv" is XLA's grouped convolution, the right one on GPU and TPU; on CPU it takes
    several times as long as "taps". "auto" chooses by the platform the program is compiled for.
    """
    if method == "auto":
        cpu, default = (partial(_METHODS[name], stride=stride) for name in ("taps", "conv"))
        return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=default)
    if method not in _METHODS:
        raise errors.unknown_name("depthwise method", method, ["auto", *_METHODS])
    return _METHODS[method](x, kernel, stride)


class DepthwiseConv(nn.Module):
    """Depthwise convolution; parameters `kernel` [k k 1 c], `bias` [c] as `nn.Conv`."""

    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    method: str = "auto"
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1, channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        y = depthwise_conv(x, kernel, self.method, self.stride)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return y + jnp.asarray(bias, self.dtype)


class PatchConv(nn.Module):
    """Convolution of patches that do not overlap; parameters as `nn.Conv`'s.

    On CPU as a product per row of a patch: a convolution's gradients take up to seven times as long
    there (53 ms, not 8, for patches of 8 x 8 of 5 x 56 x 56 x 64).
    """

    width: int
    size: int
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        """h and w are multiples of `size`."""
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        x, kernel, bias = (jnp.asarray(a, self.dtype) for a in (x, kernel, bias))
        y = jax.lax.platform_dependent(x, kernel, cpu=_patches_by_rows, default=_patches_by_conv)
        return y + bias


def _patches_by_rows(x, kernel):
    size, _, channels, width = kernel.shape
    n, height, columns = x.shape[0], x.shape[1] // size, x.shape[2] // size
    rows = x.reshape(n * height, size, columns, size * channels)
    products = (
        rows[:, i].reshape(-1, size * channels) @ kernel[i].reshape(-1, width) for i in range(size)
    )
    return sum(products).reshape(n, height, columns, width)


def _patches_by_conv(x, kernel):
    strides, numbers = kernel.shape[:2], ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=numbers)


class DilatedHead(nn.Module):
    """Sum of four 3x3 convolutions that look 3, 6, 12 and 18 cells far (DeepLab's, 1606.00915)."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        conv = partial(
            Conv, self.dim, (3, 3), kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )
        return sum(
            conv(padding=far, kernel_dilation=far, name=f"conv{i}")(x)
            for i, far in enumerate((3, 6, 12, 18))
        )
