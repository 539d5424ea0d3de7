"""Light networks for one CPU: what the quickstart trains from scratch in minutes.

    small_resnet  picture [n h w 3]  -> four maps of 24, 48, 96, 128 channels, strides 4, 8, 16, 32
    AudioCNN      log-mel [n 96 64]  -> [n 128]

Both use BatchNorm with momentum 0.95, which follows the few steps of a short run.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from avs_jax.backbones.resnet import ResNet, conv_init
from avs_jax.layers.conv import Conv
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime
from avs_jax.types import Array, Bool, Float

# One block per stage: at 64 to 96 pixels time is spent better on width and resolution than depth.
small_resnet = partial(
    ResNet,
    depths=(1, 1, 1, 1),
    bottleneck=False,
    widths=(24, 48, 96, 128),
    stem="patch",
    stem_width=24,
    bn_momentum=0.95,
    zero_init_residual=True,
)


class AudioCNN(nn.Module):
    """Four stride-2 convolutions over a log-mel patch; pooled over time, but not over frequency.

    Where a sound lies in frequency tells what it is, when it starts within the second does not.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    num_features: int = 128  # as VGGish
    bn_momentum: float = 0.95
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32

    @property
    def features(self) -> int:
        return self.num_features

    @nn.compact
    def __call__(
        self,
        log_mel: Float[Array, "n 96 64"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n d"]:
        """Log-mel patches (`audio.log_mel`) -> features >= 0.

        `frame_mask`: the seconds that batch statistics are taken over; None: all.
        """
        x = (
            log_mel[..., None] + 2.0
        ) / 2.5  # about zero mean and unit variance: log-mel is -4.6 .. 2
        x = x.astype(self.dtype)
        for i, width in enumerate(self.widths, start=1):
            x = Conv(
                width,
                (3, 3),
                (2, 2),
                padding=((1, 1), (1, 1)),
                use_bias=False,
                kernel_init=conv_init,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            norm = BatchNorm(self.regime, self.bn_momentum, dtype=self.dtype, name=f"bn{i}")
            x = nn.relu(norm(x, train, frame_mask))
        # Not x.max(axis=1): XLA on CPU recomputes x in the backward pass, rounds it differently,
        # and the comparison with the maximum then misses (gradients up to 40 % off, measured).
        loudest = nn.max_pool(x, (x.shape[1], 1))[:, 0]
        x = jnp.concatenate([x.mean(axis=1), loudest], axis=-1)  # [n 4 frequencies, 2c]
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(self.num_features, dtype=self.dtype, name="dense")(x))
