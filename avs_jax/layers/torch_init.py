"""Linear layers and convolutions that start from the numbers that PyTorch's start from."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.layers.conv import convolve
from avs_jax.types import Array, Float


def _fan_in_uniform(fan_in: int) -> Callable:
    """PyTorch's default for the weight and the bias of Linear and Conv2d: +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """A linear layer, initialised as PyTorch's."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
        init = _fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features)).astype(self.dtype)
        # Two dimensions: XLA's CPU matmul is about 1.6x slower on [n tokens d].
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        if self.use_bias:
            y += self.param("bias", init, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """A square convolution of stride 1 with bias, initialised as PyTorch's.

    The kernel is [k k c/groups e]; only 1x1 convolutions have groups.
    """

    features: int
    kernel: int
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w e"]:
        size, width = self.kernel, x.shape[-1] // self.groups
        init = _fan_in_uniform(size**2 * width)
        kernel = self.param("kernel", init, (size, size, width, self.features)).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if size > 1:
            dims = ("NHWC", "HWIO", "NHWC")
            return convolve(x, kernel, (1, 1), "SAME", dimension_numbers=dims) + bias
        # 1x1 as matmuls: the gradient of XLA's grouped convolution is 20x slower on CPUs.
        grouped = x.reshape(-1, self.groups, width)
        kernel = kernel.reshape(width, self.groups, -1)
        y = jnp.einsum("ngc,cge->nge", grouped, kernel)
        return y.reshape(*x.shape[:-1], self.features) + bias
