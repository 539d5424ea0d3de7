"""ResNet (He et al., CVPR 2016) with torchvision's arithmetic, as a pyramid of four maps.

"v1.5": the stride sits on the 3x3 convolution of a bottleneck, not on its first 1x1. Paddings are
explicit and symmetric (XLA's SAME would pad stride-2 convolutions on one side only), max-pooling
pads with -inf, BatchNorm has eps 1e-5. One class covers ResNet-18, ResNet-50 and the light net of
the quickstart, which has a patch stem.

    x [n h w 3] -> stem [n h/4 w/4 s] -> layer1..4 at strides 4, 8, 16, 32

Parameter names follow torchvision's: conv1, bn1, layer1_0.conv1, layer1_0.downsample_conv, ...
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from avs_jax.layers.conv import Conv
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime
from avs_jax.layers.relu import relu
from avs_jax.layers.remat import rematerialised
from avs_jax.types import Array, Bool, Float

# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(width: int, size: int, stride: int, name: str, dtype: Any) -> nn.Conv:
    pad = 0 if size == stride else (size - 1) // 2  # patches do not overlap the border
    return Conv(
        width,
        (size, size),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=conv_init,
        dtype=dtype,
        name=name,
    )


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """3x3 max-pooling of stride 2, padded by one pixel of -inf on each side.

    On CPU along one axis after the other, as the largest of three slices: the gradient of a window
    is one value after the other there (117 ms, not 31, for 5 x 112 x 112 x 64). Equal values then
    share a gradient that the first of them has elsewhere: after a ReLU such are zeros, which have
    none.
    """

    def of_slices(x):
        for axis in (1, 2):
            half = -(-x.shape[axis] // 2)
            pad = [(0, 0)] * 4
            pad[axis] = (1, 2 * half + 1 - x.shape[axis])
            x = jnp.pad(x, pad, constant_values=-jnp.inf)
            # [.. half+1 2 ..]: slices without a stride, whose gradients are made without a scatter
            pairs = x.reshape(*x.shape[:axis], half + 1, 2, *x.shape[axis + 1 :])
            first, second = (jax.lax.index_in_dim(pairs, i, axis + 1, False) for i in (0, 1))
            here = partial(jax.lax.slice_in_dim, start_index=0, limit_index=half, axis=axis)
            after = jax.lax.slice_in_dim(first, 1, half + 1, axis=axis)
            x = jnp.maximum(jnp.maximum(here(first), here(second)), after)
        return x

    def of_windows(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    return jax.lax.platform_dependent(x, cpu=of_slices, default=of_windows)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a four times wider output; post-activation."""

    width: int
    stride: int
    bottleneck: bool
    zero_init: bool  # start as the identity: scale of the last norm 0
    bn_momentum: float
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n h2 w2 d"]:
        def norm(x, name, scale_init=nn.initializers.ones):
            module = BatchNorm(
                self.regime, self.bn_momentum, scale_init=scale_init, dtype=self.dtype, name=name
            )
            return module(x, train, frame_mask)

        conv = partial(_conv, dtype=self.dtype)
        last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        shortcut = x
        if self.bottleneck:
            out = 4 * self.width
            x = relu(norm(conv(self.width, 1, 1, "conv1")(x), "bn1"), train)
            x = relu(norm(conv(self.width, 3, self.stride, "conv2")(x), "bn2"), train)
            x = norm(conv(out, 1, 1, "conv3")(x), "bn3", last_scale)
        else:
            out = self.width
            x = relu(norm(conv(out, 3, self.stride, "conv1")(x), "bn1"), train)
            x = norm(conv(out, 3, 1, "conv2")(x), "bn2", last_scale)
        if self.stride != 1 or shortcut.shape[-1] != out:
            shortcut = conv(out, 1, self.stride, "downsample_conv")(shortcut)
            shortcut = norm(shortcut, "downsample_bn")
        return relu(x + shortcut, train)


class ResNet(nn.Module):
    """The pyramid. `channels` and `strides` say what it returns."""

    depths: tuple[int, ...]
    bottleneck: bool
    widths: tuple[int, ...] = (64, 128, 256, 512)  # He et al., Table 1
    stem: str = "imagenet"  # 7x7 stride 2 and max-pool; or "patch": one 4x4 stride-4 convolution
    stem_width: int = 64
    bn_momentum: float = 0.9  # Flax's convention; PyTorch calls it momentum 0.1
    zero_init_residual: bool = False
    remat: str | bool = "none"  # of blocks in the backward pass, see layers/remat.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32  # of the computation; parameters and statistics stay float32

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(width * (4 if self.bottleneck else 1) for width in self.widths)

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

        `train=False` normalises by the running statistics; True by the batch's, of the frames in
        `frame_mask` (None: all), and updates them.
        """
        x = x.astype(self.dtype)
        norm = BatchNorm(self.regime, self.bn_momentum, dtype=self.dtype, name="bn1")
        if self.stem == "imagenet":
            x = _conv(self.stem_width, 7, 2, "conv1", self.dtype)(x)
            x = max_pool(relu(norm(x, train, frame_mask), train))
        else:
            x = _conv(self.stem_width, 4, 4, "conv1", self.dtype)(x)
            x = relu(norm(x, train, frame_mask), train)
        block = rematerialised(ResidualBlock, self.remat, static_argnums=(2,))
        maps = []
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                x = block(
                    width=width,
                    stride=2 if i > 0 and j == 0 else 1,
                    bottleneck=self.bottleneck,
                    zero_init=self.zero_init_residual,
                    bn_momentum=self.bn_momentum,
                    regime=self.regime,
                    dtype=self.dtype,
                    name=f"layer{i + 1}_{j}",
                )(x, train, frame_mask)
            maps.append(x)
        return tuple(maps)


resnet18 = partial(ResNet, depths=(2, 2, 2, 2), bottleneck=False)
resnet50 = partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True)
