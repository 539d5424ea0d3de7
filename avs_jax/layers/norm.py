"""Batch normalisation: the one that all networks use."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from avs_jax import errors
from avs_jax.layers.regime import Regime
from avs_jax.types import Array, Bool, Float


class BatchNorm(nn.Module):
    """Over samples and pixels, per channel; parameters and statistics as `nn.BatchNorm`'s.

    In training by the statistics that `regime` says, else by the running ones. Statistics are at
    least float32, whatever `dtype` is. PyTorch keeps the unbiased variance in its running ones
    (n / (n - 1) times as large as this), which matters for tiny batches only.
    """

    regime: Regime = Regime()
    momentum: float = 0.9  # Flax's convention; PyTorch calls it momentum 0.1
    epsilon: float = 1e-5  # PyTorch's BatchNorm2d
    scale_init: Callable = nn.initializers.ones
    use_scale: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n *hw c"],
        train: bool,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n *hw c"]:
        """`frame_mask`: the samples that statistics are taken over; None: all.

        Raises:
          BadValueError: norm="per_device", and samples that the devices cannot share evenly.
        """
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)

        wide = (1,) * (x.ndim - 1) + shape
        y, mean, var = x, running_mean.value.reshape(wide), running_var.value.reshape(wide)
        if self.regime.norm != "frozen" and self.regime.trains(self.path, train):
            y, frame_mask = self._split(x, frame_mask)
            shift = jax.lax.stop_gradient(running_mean.value)
            mean, var, count = self._statistics(y, frame_mask, shift)
            if not self.is_initializing():
                for running, batch in ((running_mean, mean), (running_var, var)):
                    moved = self.momentum * running.value
                    moved += (1 - self.momentum) * batch[0].reshape(shape)
                    if count is not None:  # a device whose clips are all padding has none
                        moved = jnp.where(count[0].reshape(()) > 0, moved, running.value)
                    running.value = moved
        # Shaped and ordered as in `nn.BatchNorm`, so that XLA rounds alike.
        factor = jax.lax.rsqrt(var + self.epsilon)
        if scale is not None:
            factor *= scale.reshape(wide)
        y = (y - mean) * factor + bias.reshape(wide)
        return y.reshape(x.shape).astype(self.dtype)

    def _split(self, x, frame_mask):
        """[groups n/groups *hw c] and [groups n/groups 1 ..] or None, a group per device."""
        groups = self.regime.devices if self.regime.norm == "per_device" else 1
        if len(x) % groups:
            raise errors.BadValueError(
                f"norm='per_device': {len(x)} frames are not divisible by {groups} devices; use a "
                "batch size that is, or norm='global'."
            )
        split = (groups, len(x) // groups)
        if frame_mask is not None:
            frame_mask = frame_mask.reshape(*split, *[1] * (x.ndim - 1))
        return x.reshape(*split, *x.shape[1:]), frame_mask

    def _statistics(self, x, frame_mask, shift):
        """Mean and variance of each group [groups 1 .. c], and how many values; None: all."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes, count = tuple(range(1, x.ndim - 1)), None
        if frame_mask is not None:
            count = frame_mask.sum(axes, keepdims=True) * math.prod(x.shape[2:-1])

        def mean_of(values):
            if count is None:
                return values.mean(axes, keepdims=True)
            total = jnp.where(frame_mask, values, 0.0).sum(axes, keepdims=True)
            return total / jnp.maximum(count, 1)

        two_pass = self.regime.two_pass_variance
        if jax.default_backend() == "cpu" if two_pass is None else two_pass:
            mean = mean_of(x)
            return mean, mean_of(jnp.square(x - mean)), count
        x = x - shift
        mean = mean_of(x)
        return shift + mean, jnp.maximum(mean_of(jnp.square(x)) - jnp.square(mean), 0.0), count
