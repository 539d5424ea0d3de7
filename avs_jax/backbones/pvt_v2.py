"""PVTv2 (Wang et al., "PVT v2: improved baselines with pyramid vision transformer", 2022).

    x [n h w 3] -> four stages at strides 4, 8, 16, 32: overlapping patch embedding, blocks, norm

A block is a pre-norm transformer block; its attention sees keys and values reduced in space by a
strided convolution (sr x sr), so that there are h/32 * w/32 keys in every stage, and its MLP has a
3x3 depthwise convolution between the two Dense layers, which stands in for a position code.

LayerNorm epsilons differ by place, as in the published code: 1e-5 (PyTorch's default) in the patch
embeddings and in the spatial reduction, 1e-6 in blocks and after stages. GELU is the exact one.
Parameter names follow the published file: patch_embed1.proj, block1_0.attn.kv, norm1, ...
"""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from avs_jax import errors
from avs_jax.layers.attention import attend
from avs_jax.layers.conv import Conv, DepthwiseConv, PatchConv
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import rematerialised
from avs_jax.layers.shared import call_block
from avs_jax.types import Array, Bool, Float, Key

EPSILON_DEFAULT = 1e-5  # patch embedding, spatial reduction
EPSILON_BLOCK = 1e-6  # blocks, end of stage
# The published init: Dense by truncated normal 0.02, convolutions by normal sqrt(2 / fan_out).
dense_init = nn.initializers.truncated_normal(0.02)
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# Two passes: gradients through the one-pass variance are off where a mean is far from zero.
_layer_norm = partial(nn.LayerNorm, use_fast_variance=False)


class PatchEmbed(nn.Module):
    """Strided convolution with overlap, then LayerNorm."""

    width: int
    size: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        pad = self.size // 2
        x = Conv(
            self.width,
            (self.size, self.size),
            (self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            kernel_init=conv_init,
            dtype=self.dtype,
            name="proj",
        )(x)
        return _layer_norm(epsilon=EPSILON_DEFAULT, dtype=self.dtype, name="norm")(x)


class Attention(nn.Module):
    """Multi-head attention whose keys and values come from a map reduced `reduction` times."""

    num_heads: int
    reduction: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, height, width, channels = x.shape
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=dense_init)
        heads = (self.num_heads, channels // self.num_heads)
        query = dense(channels, name="q")(x.reshape(-1, channels))
        context = x
        if self.reduction > 1:
            context = PatchConv(
                channels, self.reduction, kernel_init=conv_init, dtype=self.dtype, name="sr"
            )(context)
            context = _layer_norm(epsilon=EPSILON_DEFAULT, dtype=self.dtype, name="norm")(context)
        key_value = dense(2 * channels, name="kv")(context.reshape(-1, channels))
        key_value = key_value.reshape(n, -1, 2, *heads)  # first half of the channels: keys
        out = attend(
            query.reshape(n, height * width, *heads), key_value[:, :, 0], key_value[:, :, 1]
        )
        out = dense(channels, name="proj")(out.reshape(-1, channels))
        return out.reshape(n, height, width, channels)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact one as PyTorch has it: jax's takes erfc, which is dearer on CPU than all of this.

    For gradients only x is kept, where autodiff keeps three maps more of an MLP's whole width.
    """
    return x * _normal_share(x)


def _normal_share(x: Array) -> Array:
    """Of a standard normal variable, how much lies below x."""
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * jnp.square(x)) * (1 / math.sqrt(2 * math.pi))
    return (dy * (_normal_share(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Mlp(nn.Module):
    """Dense, depthwise 3x3 on the map, GELU, Dense."""

    hidden: int
    depthwise: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, height, width, channels = x.shape
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=dense_init)
        hidden = dense(self.hidden, name="fc1")(x.reshape(-1, channels))
        hidden = hidden.reshape(n, height, width, self.hidden)
        hidden = DepthwiseConv(
            method=self.depthwise, kernel_init=conv_init, dtype=self.dtype, name="dwconv"
        )(hidden)
        hidden = gelu(hidden)
        return dense(channels, name="fc2")(hidden.reshape(-1, self.hidden)).reshape(x.shape)


class Block(nn.Module):
    """x + attn(norm1 x), then x + mlp(norm2 x), each branch times its scale of each sample."""

    num_heads: int
    mlp_ratio: int
    reduction: int
    depthwise: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], scales: Float[Array, "2 n"] | None = None
    ) -> Float[Array, "n h w c"]:
        """scales: of `draw_scales`; None: 1."""
        norm = partial(_layer_norm, epsilon=EPSILON_BLOCK, dtype=self.dtype)
        attention = Attention(self.num_heads, self.reduction, self.dtype, name="attn")
        mlp = Mlp(self.mlp_ratio * x.shape[-1], self.depthwise, self.dtype, name="mlp")

        def scaled(branch, i):
            if scales is None:
                return branch
            return (branch * scales[i, :, None, None, None]).astype(self.dtype)

        x = x + scaled(attention(norm(name="norm1")(x)), 0)
        return x + scaled(mlp(norm(name="norm2")(x)), 1)


def draw_scales(
    key: Key[Array, ""], rates: Float[np.ndarray, " k"], count: int
) -> Float[Array, "k 2 n"]:
    """Stochastic depth of k blocks of two branches: 0 where a branch is dropped, at the block's
    rate and for a whole sample, and 1 / (1 - rate) where it is kept."""
    keep = 1 - rates[:, None, None]
    kept = jax.random.bernoulli(key, keep, (len(rates), 2, count))
    return kept / np.maximum(keep, np.finfo(keep.dtype).tiny)  # a rate may be 1


class PVTv2(nn.Module):
    """The pyramid. `channels` and `strides` say what it returns."""

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    drop_path: float = 0.1  # of the last block; from 0, linearly over all blocks (rng "dropout")
    remat: str | bool = "none"  # of blocks in the backward pass, see layers/remat.py
    depthwise: str = "auto"  # formulation of the depthwise convolutions, see layers/conv.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32  # of the computation; parameters stay float32

    @property
    def channels(self) -> tuple[int, ...]:
        return self.widths

    @property
    def strides(self) -> tuple[int, ...]:
        return (4, 8, 16, 32)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w 3"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> tuple[Float[Array, "n _h _w _c"], ...]:
        """Normalised RGB -> four maps [n h/s w/s c] for s = 4, 8, 16, 32.

        `frame_mask` changes nothing, for there are no batch statistics.

        Raises:
          BadValueError: where h or w is not a multiple of 32.
        """
        del frame_mask
        height, width = x.shape[1:3]
        if height % 32 or width % 32:
            raise errors.BadValueError(
                f"PVTv2 takes pictures whose sides are multiples of 32, not {height}x{width}; "
                f"resize them to {-(-height // 32) * 32}x{-(-width // 32) * 32}."
            )
        x = x.astype(self.dtype)
        names = [f"block{i + 1}_{j}" for i, depth in enumerate(self.depths) for j in range(depth)]
        trained = [self.regime.trains((*self.path, name), train) for name in names]
        rates = np.linspace(0.0, self.drop_path, len(names), dtype=np.float32) * trained
        scales = [None] * len(names)
        if rates.any():
            scales = draw_scales(self.make_rng("dropout"), rates, len(x))
        named_scales = zip(names, scales, strict=True)
        block = rematerialised(Block, self.remat)
        maps = []
        for i, depth in enumerate(self.depths):
            size, stride = (7, 4) if i == 0 else (3, 2)
            x = PatchEmbed(self.widths[i], size, stride, self.dtype, name=f"patch_embed{i + 1}")(x)
            for name, scale in itertools.islice(named_scales, depth):
                named = block(
                    num_heads=self.num_heads[i],
                    mlp_ratio=self.mlp_ratios[i],
                    reduction=self.reductions[i],
                    depthwise=self.depthwise,
                    dtype=self.dtype,
                    name=name,
                )
                x = call_block(named, x, scale)
            x = _layer_norm(epsilon=EPSILON_BLOCK, dtype=self.dtype, name=f"norm{i + 1}")(x)
            maps.append(x)
        return tuple(maps)


pvt_v2_b0 = partial(PVTv2, depths=(2, 2, 2, 2), widths=(32, 64, 160, 256))
pvt_v2_b1 = partial(PVTv2, depths=(2, 2, 2, 2))
pvt_v2_b2 = partial(PVTv2, depths=(3, 4, 6, 3))
pvt_v2_b3 = partial(PVTv2, depths=(3, 4, 18, 3))
pvt_v2_b4 = partial(PVTv2, depths=(3, 8, 27, 3))
pvt_v2_b5 = partial(PVTv2, depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4))
