"""Batch normalisation: the one that all networks use."""

import math
from collections.abc import Callable
from functools import partial
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

        if self.regime.norm == "frozen" or not self.regime.trains(self.path, train):
            wide = (1,) * (x.ndim - 1) + shape
            mean, var = running_mean.value.reshape(wide), running_var.value.reshape(wide)
            # Shaped and ordered as in `nn.BatchNorm`, so that XLA rounds alike.
            factor = jax.lax.rsqrt(var + self.epsilon)
            if scale is not None:
                factor *= scale.reshape(wide)
            return ((x - mean) * factor + bias.reshape(wide)).astype(self.dtype)

        groups, mask = self._split(x, frame_mask)
        shift = jax.lax.stop_gradient(running_mean.value)
        two_pass = self.regime.two_pass_variance
        if two_pass is None:
            two_pass = jax.default_backend() == "cpu"
        ones = jnp.ones(shape, jnp.float32)
        y, mean, var = _normalise(
            groups, ones if scale is None else scale, bias, mask, shift, self.epsilon, two_pass
        )
        if not self.is_initializing():
            for running, batch in ((running_mean, mean), (running_var, var)):
                moved = self.momentum * running.value + (1 - self.momentum) * batch
                if mask is not None:  # a device whose clips are all padding has none
                    some = mask.any(axis=tuple(range(1, mask.ndim)))
                    moved = jnp.where(some[:, None], moved, running.value)
                mean_of_devices = self.regime.running_statistics == "mean"
                running.value = moved.mean(0) if mean_of_devices else moved[0]
        return y.reshape(x.shape).astype(self.dtype)

    def _split(self, x, frame_mask):
        """[groups n/groups *hw c] and the mask [groups n/groups *1 1] or None.

        A group per device where statistics are per device, else one.
        """
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


def _sum(x: Array) -> Array:
    """[g n *hw c] -> [g *1 c], at least float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide.sum(axis=tuple(range(1, x.ndim - 1)), keepdims=True)


def _statistics(x, mask, shift, two_pass):
    """Mean, variance [g *1 c] and how many values they are of: [g *1 1] or a number."""
    count = math.prod(x.shape[1:-1])
    if mask is not None:
        x = jnp.where(mask, x, 0)
        frames = mask.sum(axis=1, keepdims=True)
        count = jnp.maximum(frames, 1) * (count // x.shape[1])

    def mean_of(values):
        return _sum(values if mask is None else jnp.where(mask, values, 0)) / count

    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if two_pass:
        mean = mean_of(wide)
        return mean, mean_of(jnp.square(wide - mean)), count
    wide = wide - shift
    mean = mean_of(wide)
    return shift + mean, jnp.maximum(mean_of(jnp.square(wide)) - jnp.square(mean), 0.0), count


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _normalise(x, scale, bias, mask, shift, epsilon, two_pass):
    """Normalised by the statistics of each group; x [g n *hw c] -> y, mean and variance [g c].

    The backward pass is the closed form (Ioffe & Szegedy, arXiv 1502.03167, section 3): autodiff of
    two passes reads the maps six times as often. Nothing is learnt through the statistics that are
    returned: they are for the running ones.
    """
    return _normalise_forward(x, scale, bias, mask, shift, epsilon, two_pass)[0]


def _normalise_forward(x, scale, bias, mask, shift, epsilon, two_pass):
    mean, var, count = _statistics(x, mask, shift, two_pass)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (x - mean) * (inverse * scale) + bias
    per_group = (len(x), x.shape[-1])
    return (y, mean.reshape(per_group), var.reshape(per_group)), (
        x,
        scale,
        mask,
        mean,
        inverse,
        count,
    )


def _normalise_backward(epsilon, two_pass, saved, cotangents):
    del epsilon, two_pass
    x, scale, mask, mean, inverse, count = saved
    dy = cotangents[0]
    unit = (x - mean) * inverse
    sum_dy, sum_dy_unit = _sum(dy), _sum(dy * unit)
    through = (sum_dy + unit * sum_dy_unit) / count
    if mask is not None:  # what does not count in the statistics has no gradient through them
        through = jnp.where(mask, through, 0)
    dx = (dy - through) * (inverse * scale)
    channels = x.shape[-1:]
    d_scale, d_bias = (s.sum(axis=0).reshape(channels) for s in (sum_dy_unit, sum_dy))
    return dx.astype(x.dtype), d_scale, d_bias, None, None


_normalise.defvjp(_normalise_forward, _normalise_backward)
