"""Convolutions: depthwise ones, as fast as the platform has them, and dilated ones."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from avs_jax import errors
from avs_jax.types import Array, Float


def _depthwise_taps(x: Array, kernel: Array) -> Array:
    """Sum of shifted copies, each times one tap: XLA fuses them into a single pass on CPU."""
    height, width = x.shape[1:3]
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    return sum(
        x[:, i : i + height, j : j + width] * kernel[i, j, 0]
        for i in range(rows)
        for j in range(columns)
    )


def _depthwise_conv(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


_METHODS = {"taps": _depthwise_taps, "conv": _depthwise_conv}


def depthwise_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw 1 c"], method: str = "auto"
) -> Float[Array, "n h w c"]:
    """Each channel with its own odd-sized kernel, stride 1, zero padding to the same size.

    `method`: "conv" is XLA's grouped convolution, the right one on GPU and TPU; on CPU it takes
    several times as long as "taps". "auto" chooses by the platform the program is compiled for.
    """
    if method == "auto":
        return jax.lax.platform_dependent(x, kernel, cpu=_depthwise_taps, default=_depthwise_conv)
    if method not in _METHODS:
        raise errors.unknown_name("depthwise method", method, ["auto", *_METHODS])
    return _METHODS[method](x, kernel)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with bias; parameters `kernel` [k k 1 c], `bias` [c] as `nn.Conv`."""

    kernel_size: int = 3
    method: str = "auto"
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1, channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x, kernel, bias = (jnp.asarray(value, self.dtype) for value in (x, kernel, bias))
        return depthwise_conv(x, kernel, self.method) + bias


class DilatedHead(nn.Module):
    """Sum of four 3x3 convolutions that look 3, 6, 12 and 18 cells far (DeepLab's, 1606.00915)."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        conv = partial(
            nn.Conv, self.dim, (3, 3), kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )
        return sum(
            conv(padding=far, kernel_dilation=far, name=f"conv{i}")(x)
            for i, far in enumerate((3, 6, 12, 18))
        )
