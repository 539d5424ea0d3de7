"""YAMNet (Plakal and Ellis, tensorflow/models `audioset/yamnet`, 2020): MobileNet-v1 on log-mel.

    log-mel [n 96 64] -> 14 layers, strides 2 at 1, 3, 5, 7, 13 -> [n 3 2 1024] -> mean [n 1024]

It knows the 521 classes of AudioSet: `classify` gives their logits. 3.2 M parameters without them,
where VGGish has 72.1 M.

The log-mel of this library is VGGish's, log(mel + 0.01). YAMNet's is the same but for
log(mel + 0.001), which the first line makes of it: so a batch's sound is prepared alike for every
backbone. What that rounds off is below 1e-5 even in silence (tests/backbones/test_yamnet.py).
"""

import pathlib
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from avs_jax import errors
from avs_jax.layers.conv import Conv, DepthwiseConv
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime
from avs_jax.media.audio import LOG_OFFSET
from avs_jax.types import Array, Bool, Float

EPSILON = 1e-4
MOMENTUM = 0.99  # Keras' default
OWN_LOG_OFFSET = 0.001
STEM_WIDTH = 32
# (width, stride) of the 13 depthwise-separable layers
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)

# Published: no scale, for a ReLU and a convolution follow.
_batch_norm = partial(BatchNorm, momentum=MOMENTUM, epsilon=EPSILON, use_scale=False)


def read_class_names() -> tuple[str, ...]:
    """What `classify` tells apart, 521 names: the column display_name of `yamnet_class_map.csv`."""
    path = pathlib.Path(__file__).with_name("yamnet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def own_log_mel(log_mel: Float[Array, "*n 96 64"]) -> Float[Array, "*n 96 64"]:
    """log(mel + 0.01) -> log(mel + 0.001)."""
    mel = jnp.maximum(jnp.exp(log_mel.astype(jnp.float32)) - LOG_OFFSET, 0.0)
    return jnp.log(mel + OWN_LOG_OFFSET)


class SeparableLayer(nn.Module):
    """Depthwise 3x3, norm, ReLU, pointwise 1x1, norm, ReLU."""

    width: int
    stride: int
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

        x = DepthwiseConv(
            3,
            self.stride,
            use_bias=False,
            method=self.depthwise,
            dtype=self.dtype,
            name="depthwise_conv",
        )(x)
        x = nn.relu(norm(x, "depthwise_bn"))
        x = Conv(self.width, (1, 1), use_bias=False, dtype=self.dtype, name="pointwise_conv")(x)
        return nn.relu(norm(x, "pointwise_bn"))


class YAMNet(nn.Module):
    """log-mel patch -> 1024 features >= 0; with `num_classes=521` also AudioSet's classes."""

    num_classes: int = 0  # 521: with AudioSet's head among the parameters, see `classify`
    depthwise: str = "auto"  # formulation of the depthwise convolutions, see layers/conv.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32

    @property
    def features(self) -> int:
        return LAYERS[-1][0]

    def setup(self):
        self.conv1 = Conv(
            STEM_WIDTH, (3, 3), (2, 2), padding="SAME", use_bias=False, dtype=self.dtype
        )
        self.bn1 = _batch_norm(self.regime, dtype=self.dtype)
        for i, (width, stride) in enumerate(LAYERS, start=2):
            layer = SeparableLayer(width, stride, self.depthwise, self.regime, self.dtype)
            setattr(self, f"layer{i}", layer)
        if self.num_classes:
            self.logits = nn.Dense(self.num_classes, dtype=self.dtype)

    def __call__(
        self,
        log_mel: Float[Array, "n 96 64"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n 1024"]:
        """Log-mel patches (`audio.log_mel`) -> features.

        `train=False` normalises by the running statistics; True by the batch's, of the seconds in
        `frame_mask` (None: all), and updates them.
        """
        x = own_log_mel(log_mel)[..., None].astype(self.dtype)
        x = nn.relu(self.bn1(self.conv1(x), train, frame_mask))
        for i in range(2, 2 + len(LAYERS)):
            x = getattr(self, f"layer{i}")(x, train, frame_mask)
        features = x.mean(axis=(1, 2))
        if self.num_classes and self.is_initializing():
            self.classify(features)
        return features

    def classify(self, features: Float[Array, "n 1024"]) -> Float[Array, "n k"]:
        """Features -> logits of AudioSet's classes, of which a patch may have several.

        Their sigmoid is the published score.

        Raises:
          BadValueError: the network was made without its head.
        """
        if not self.num_classes:
            raise errors.BadValueError("this YAMNet has no head; make it with num_classes=521.")
        return self.logits(features)
