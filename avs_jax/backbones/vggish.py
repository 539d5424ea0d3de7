"""VGGish (Hershey et al., "CNN architectures for large-scale audio classification", ICASSP 2017).

The sound network of AVSBench and of all three papers, in the variant of torchvggish without PCA
post-processing: the last layer of the embedding has its ReLU too, so features are >= 0. The papers
keep it frozen.

    log-mel [n 96 64] -> convolutions and four pools [n 6 4 512] -> flatten -> [n 128]

Parameter names follow the published file: features_0 .. features_13, embeddings_0 .. embeddings_4.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from avs_jax.layers.conv import Conv
from avs_jax.layers.regime import Regime
from avs_jax.types import Array, Bool, Float

# (index in the published nn.Sequential, width); None is a 2x2 max-pool
_FEATURES = ((0, 64), None, (3, 128), None, (6, 256), (8, 256), None, (11, 512), (13, 512), None)
_EMBEDDINGS = ((0, 4096), (2, 4096), (4, 128))


class VGGish(nn.Module):
    """log-mel patch -> 128 features >= 0. 72 141 184 parameters, 94 % of them in Dense layers."""

    regime: Regime = Regime()  # for the sake of the backbones' contract
    dtype: Any = jnp.float32

    @property
    def features(self) -> int:
        return _EMBEDDINGS[-1][1]

    @nn.compact
    def __call__(
        self,
        log_mel: Float[Array, "n 96 64"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n 128"]:
        """Log-mel patches (`audio.log_mel`) -> features; nothing else changes them."""
        del train, frame_mask  # neither dropout nor batch statistics
        x = log_mel[..., None].astype(self.dtype)
        for layer in _FEATURES:
            if layer is None:
                x = nn.max_pool(x, (2, 2), (2, 2))
                continue
            index, width = layer
            x = Conv(width, (3, 3), dtype=self.dtype, name=f"features_{index}")(x)
            x = nn.relu(x)
        # Changes no value (they come out of a ReLU; NaN stays NaN), but parts the convolutions from
        # the dense layers: in one fusion of both, XLA for CPU (jax 0.10) takes seven times as long
        # on 2 to 8 patches.
        x = jnp.where(x <= 0, 0, x)
        x = x.reshape(x.shape[0], -1)  # [n 6*4*512], channels last as the published file has them
        for index, width in _EMBEDDINGS:
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"embeddings_{index}")(x))
        return x
