"""The pixel decoder of MTTR (arXiv 2111.14821): maps, coarse to fine -> mask features."""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.layers.conv import Conv
from avs_jax.layers.resize import resize_nearest
from avs_jax.types import Array, Float


class PixelDecoder(nn.Module):
    """Four convolutions; after the first three a map may join in, whose grid is then the grid."""

    widths: tuple[int, ...]
    out_dim: int
    norm_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w d"], laterals: list[Float[Array, "n _ _ _"] | None]
    ) -> Float[Array, "n _ _ e"]:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # kaiming, a = 1
        conv = functools.partial(
            Conv, kernel_size=(3, 3), padding=1, kernel_init=init, dtype=self.dtype
        )
        adapters = itertools.count(1)
        steps = zip(self.widths, [None, *laterals], strict=True)
        for i, (width, lateral) in enumerate(steps, start=1):
            if lateral is not None:
                name = f"adapter{next(adapters)}"
                side = Conv(x.shape[-1], (1, 1), kernel_init=init, dtype=self.dtype, name=name)
                x = resize_nearest(x, lateral.shape[1:3]) + side(lateral)
            x = conv(width, name=f"conv{i}")(x)
            norm = nn.GroupNorm(
                self.norm_groups,
                epsilon=1e-5,  # PyTorch's default
                use_fast_variance=False,
                dtype=self.dtype,
                name=f"norm{i}",
            )
            x = jax.nn.relu(norm(x))
        return conv(self.out_dim, name="out")(x)
