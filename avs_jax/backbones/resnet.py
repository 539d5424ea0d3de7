"""ResNet (He et al., CVPR 2016) with torchvision's arithmetic, as a pyramid of four maps.

"v1.5": the stride sits on the 3x3 convolution of a bottleneck, not on its first 1x1. Paddings are
explicit and symmetric (XLA's SAME would pad stride-2 convolutions on one side only), max-pooling
pads with -inf, BatchNorm has eps 1e-5. One class covers ResNet-18, ResNet-50 and the light net of
the quickstart, which has a patch stem.

    x [n h w 3] -> stem [n h/4 w/4 s] -> layer1..4 at strides 4, 8, 16, 32

Parameter names follow torchvision's: conv1, bn1, layer1_0.conv1, layer1_0.downsample_conv, ...

Deviation: Flax keeps the biased batch variance in its running statistics, PyTorch the unbiased one
(n / (n - 1) times as large). It matters for tiny batches only and never in evaluation.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from avs_jax.types import Array, Float

EPSILON = 1e-5  # PyTorch's BatchNorm2d
# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(width: int, size: int, stride: int, name: str, dtype: Any) -> nn.Conv:
    pad = 0 if size == stride else (size - 1) // 2  # patches do not overlap the border
    return nn.Conv(
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
    """3x3 max-pooling of stride 2, padded by one pixel of -inf on each side."""
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a four times wider output; post-activation."""

    width: int
    stride: int
    bottleneck: bool
    zero_init: bool  # start as the identity: scale of the last norm 0
    bn_momentum: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 d"]:
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.bn_momentum,
            epsilon=EPSILON,
            # One pass (E[x^2] - E[x]^2) loses digits where the mean is large: on 40 small frames
            # gradients were 1 % off and depended on the number of devices.
            use_fast_variance=False,
            dtype=self.dtype,
        )
        conv = partial(_conv, dtype=self.dtype)
        last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        shortcut = x
        if self.bottleneck:
            out = 4 * self.width
            x = nn.relu(norm(name="bn1")(conv(self.width, 1, 1, "conv1")(x)))
            x = nn.relu(norm(name="bn2")(conv(self.width, 3, self.stride, "conv2")(x)))
            x = norm(name="bn3", scale_init=last_scale)(conv(out, 1, 1, "conv3")(x))
        else:
            out = self.width
            x = nn.relu(norm(name="bn1")(conv(out, 3, self.stride, "conv1")(x)))
            x = norm(name="bn2", scale_init=last_scale)(conv(out, 3, 1, "conv2")(x))
        if self.stride != 1 or shortcut.shape[-1] != out:
            shortcut = conv(out, 1, self.stride, "downsample_conv")(shortcut)
            shortcut = norm(name="downsample_bn")(shortcut)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """The pyramid. `channels` and `strides` say what it returns."""

    depths: tuple[int, ...]
    bottleneck: bool
    widths: tuple[int, ...] = (64, 128, 256, 512)  # He et al., Table 1
    stem: str = "imagenet"  # 7x7 stride 2 and max-pool; or "patch": one 4x4 stride-4 convolution
    stem_width: int = 64
    bn_momentum: float = 0.9  # Flax's convention; PyTorch calls it momentum 0.1
    zero_init_residual: bool = False
    remat: bool = False  # recompute blocks in the backward pass: less memory, about 1/3 more time
    dtype: Any = jnp.float32  # of the computation; parameters and statistics stay float32

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(width * (4 if self.bottleneck else 1) for width in self.widths)

    @property
    def strides(self) -> tuple[int, ...]:
        return (4, 8, 16, 32)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w 3"], train: bool = False
    ) -> tuple[Float[Array, "n _h _w _c"], ...]:
        """Normalised RGB -> four maps [n h/s w/s c] for s = 4, 8, 16, 32.

        `train=False` normalises by the running statistics; True by the batch's and updates them.
        """
        x = x.astype(self.dtype)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.bn_momentum,
            epsilon=EPSILON,
            use_fast_variance=False,
            dtype=self.dtype,
            name="bn1",
        )
        if self.stem == "imagenet":
            x = _conv(self.stem_width, 7, 2, "conv1", self.dtype)(x)
            x = max_pool(nn.relu(norm(x)))
        else:
            x = _conv(self.stem_width, 4, 4, "conv1", self.dtype)(x)
            x = nn.relu(norm(x))
        block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        maps = []
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                x = block(
                    width=width,
                    stride=2 if i > 0 and j == 0 else 1,
                    bottleneck=self.bottleneck,
                    zero_init=self.zero_init_residual,
                    bn_momentum=self.bn_momentum,
                    dtype=self.dtype,
                    name=f"layer{i + 1}_{j}",
                )(x, train)
            maps.append(x)
        return tuple(maps)


resnet18 = partial(ResNet, depths=(2, 2, 2, 2), bottleneck=False)
resnet50 = partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True)
