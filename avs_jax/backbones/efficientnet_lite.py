"""EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019; the Lite variant of TensorFlow's TPU
models, 2020: ReLU6 for swish, no squeeze-and-excitation).

    x [n h w 3] -> stem 32 @ 1/2 -> 16 blocks -> maps of 24, 40, 112, 320 at 1/4, 1/8, 1/16, 1/32

A block widens by a 1x1 convolution, filters depthwise and narrows again without an activation;
where it keeps size and width, its input is added. So the maps that are handed out are linear, and
of very different size: standardise them. Padding is TensorFlow's SAME, which at stride 2 pads below
and right alone. ImageNet's head works on every cell of the last map (`classify`): what the mean
over a picture's cells would give is the published classification.

Parameter names follow the published file: conv_stem, bn0, blocks_3/expand_conv, conv_head, fc, ...
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from avs_jax import errors
from avs_jax.layers.conv import Conv, DepthwiseConv
from avs_jax.layers.dropout import Dropout
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import rematerialised
from avs_jax.types import Array, Bool, Float

EPSILON = 1e-3
MOMENTUM = 0.99  # both: TensorFlow's EfficientNet
# Its init: normal, variance 2 / fan-out; the Dense layer uniform, 1 / sqrt(classes).
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# RGB in [0, 1]: (rgb - 127) / 128 of 0 .. 255.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class Stage(NamedTuple):
    """Blocks that share a width; the first of them has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def relu6(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(x, 0.0, 6.0)


_batch_norm = partial(BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)


class MBConv(nn.Module):
    """1x1 up, depthwise, 1x1 down: an inverted residual block."""

    kernel: int
    stride: int
    expansion: int
    width: int
    drop_path: float
    depthwise: str
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n h2 w2 d"]:
        def norm(x, name):
            return _batch_norm(self.regime, dtype=self.dtype, name=name)(x, train, frame_mask)

        conv = partial(
            Conv,
            kernel_size=(1, 1),
            use_bias=False,
            kernel_init=conv_init,
            dtype=self.dtype,
        )
        shortcut, inner = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            x = relu6(norm(conv(inner, name="expand_conv")(x), "bn0"))
        x = DepthwiseConv(
            self.kernel,
            self.stride,
            use_bias=False,
            method=self.depthwise,
            kernel_init=conv_init,
            dtype=self.dtype,
            name="depthwise_conv",
        )(x)
        x = relu6(norm(x, "bn1"))
        x = norm(conv(self.width, name="project_conv")(x), "bn2")
        if x.shape != shortcut.shape:
            return x
        drop = Dropout(self.drop_path, broadcast_dims=(1, 2, 3), regime=self.regime)
        return shortcut + drop(x, train)


class EfficientNetLite(nn.Module):
    """The pyramid. `channels` and `strides` say what it returns."""

    stages: tuple[Stage, ...] = LITE0
    stem_width: int = 32
    num_classes: int = 0  # 1000: with ImageNet's head among the parameters, see `classify`
    head_width: int = 1280
    drop_path: float = 0.2  # of the last block; from 0, linearly over all blocks (rng "dropout")
    remat: str | bool = "none"  # of blocks in the backward pass, see layers/remat.py
    depthwise: str = "auto"  # formulation of the depthwise convolutions, see layers/conv.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32  # of the computation; parameters and statistics stay float32

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.stages[i].width for i in self._ends())

    @property
    def strides(self) -> tuple[int, ...]:
        return (4, 8, 16, 32)

    def _ends(self) -> list[int]:
        """Stages that are the last at their size, but for that at 1/2."""
        nexts = [stage.stride for stage in self.stages[1:]] + [2]
        return [i for i, stride in enumerate(nexts) if stride > 1][1:]

    def setup(self):
        conv = partial(Conv, use_bias=False, kernel_init=conv_init, dtype=self.dtype)
        self.conv_stem = conv(self.stem_width, (3, 3), (2, 2), padding="SAME")
        self.bn0 = _batch_norm(self.regime, dtype=self.dtype)
        block = rematerialised(MBConv, self.remat, static_argnums=(2,))
        count = sum(stage.repeats for stage in self.stages)
        blocks = []
        for stage in self.stages:
            for j in range(stage.repeats):
                blocks.append(
                    block(
                        kernel=stage.kernel,
                        stride=stage.stride if j == 0 else 1,
                        expansion=stage.expansion,
                        width=stage.width,
                        drop_path=self.drop_path * len(blocks) / count,
                        depthwise=self.depthwise,
                        regime=self.regime,
                        dtype=self.dtype,
                    )
                )
        self.blocks = blocks
        if self.num_classes:
            self.conv_head = conv(self.head_width, (1, 1))
            self.bn1 = _batch_norm(self.regime, dtype=self.dtype)
            self.fc = nn.Dense(self.num_classes, dtype=self.dtype)

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
        x = self.conv_stem(x.astype(self.dtype))
        x = relu6(self.bn0(x, train, frame_mask))
        maps, ends, blocks = [], self._ends(), iter(self.blocks)
        for i, stage in enumerate(self.stages):
            for _ in range(stage.repeats):
                x = next(blocks)(x, train, frame_mask)
            if i in ends:
                maps.append(x)
        if self.num_classes and self.is_initializing():
            self.classify(x)
        return tuple(maps)

    def classify(self, last: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
        """The last map -> logits of ImageNet's classes in every cell, by running statistics.

        Their mean over all cells are the logits of the picture.

        Raises:
          BadValueError: the network was made without its head.
        """
        if not self.num_classes:
            raise errors.BadValueError(
                "this EfficientNet has no head; make it with num_classes=1000."
            )
        x = relu6(self.bn1(self.conv_head(last), False))
        return self.fc(x)


efficientnet_lite0 = EfficientNetLite
