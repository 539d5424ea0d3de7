"""Dropout that knows which parts of a network are frozen."""

from flax import linen as nn

from avs_jax.layers.regime import Regime
from avs_jax.types import Array, Float


class Dropout(nn.Dropout):
    """`nn.Dropout` (rng "dropout") in training, unless `regime` has this module frozen."""

    regime: Regime = Regime()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        return super().__call__(x, deterministic=not self.regime.trains(self.path, train))
