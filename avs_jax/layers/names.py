"""Names that a network learns for what is shown and for what is heard, and their comparison.

Not of any paper. Where the same things make the same sounds, a decoder has to learn for each of
them that its look and its sound belong together. With a name for both it is enough to learn the
names, and these learn by themselves (`auxiliary_losses`). How much that brings is told in
weights/zoo/lite.md.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.layers.conv import Conv
from avs_jax.layers.resize import resize_bilinear
from avs_jax.types import Array, Float


def count_names(num_tags: int, num_semantic: int) -> int:
    """How many names there are, for sounds as for pictures.

    Raises:
      BadValueError: none, or not as many for both.
    """
    if not 0 < num_tags == num_semantic:
        raise errors.BadValueError(
            f"match with num_tags={num_tags} and num_semantic={num_semantic}: wanted as many names "
            "for sounds as for pictures, 1 or more; or match=0."
        )
    return num_tags


class PictureNames(nn.Module):
    """Names what each cell of a picture shows, from the picture alone; name 0: none of them."""

    num_names: int
    hidden: int = 128
    drop: float = 0.3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, c4: Float[Array, "n h w d4"], c5: Float[Array, "n h2 w2 d5"], train: bool = False
    ) -> Float[Array, "n h w names"]:
        """Maps, standardised -> logits of the names in the cells of `c4`, k and one for none."""
        x = jnp.concatenate([c4, resize_bilinear(c5, c4.shape[1:3])], axis=-1)
        # Whole channels: the same of neighbours would tell what one cell was not told.
        x = nn.Dropout(self.drop, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = jax.nn.relu(Conv(self.hidden, (1, 1), dtype=self.dtype, name="conv1")(x))
        x = nn.Dropout(self.drop, broadcast_dims=(1, 2), deterministic=not train)(x)
        logits = Conv(1 + self.num_names, (1, 1), name="names")
        return logits(x.astype(jnp.float32))


class NameMatcher(nn.Module):
    """Whether what a cell shows is what is heard, by names that the network has learnt for both.

    The log-odds that a cell's name is heard, expected over the names it may have, times `weight`:
    as maps, and as a term of the logits, as evidence is.

    weight: 1 as in training; less for pictures and sounds of other kinds than it learnt names on.
    drop: of training's seconds go without, so that the rest learns to do without, too.
    """

    dim: int
    weight: float = 1.0
    drop: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        shown: Float[Array, "n h w names"],
        heard: Float[Array, "n k"],
        train: bool = False,
    ) -> tuple[Float[Array, "n h w d"], Float[Array, "n h w 1"]]:
        """Logits of `PictureNames` and of the same names, heard -> maps to be added, and what
        logits are to get."""
        none = self.param("none", nn.initializers.constant(-4.0), (1,))
        odds = jnp.concatenate([jnp.broadcast_to(none, (len(heard), 1)), heard], axis=-1)
        odds = jnp.clip(odds, -8.0, 8.0)  # a name that is sure is no surer than that
        match = jnp.einsum("nhwk,nk->nhw", jax.nn.softmax(shown, axis=-1), odds)[..., None]
        match = match * self.weight
        if train and self.drop:
            shape = (len(heard), 1, 1, 1)
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.drop, shape)
            match = jnp.where(kept, match, 0.0)
        peak = jnp.broadcast_to(match.max((1, 2), keepdims=True), match.shape)
        x = jnp.concatenate([match, peak], axis=-1).astype(self.dtype) / 4
        x = jax.nn.gelu(Conv(self.dim, (1, 1), dtype=self.dtype, name="conv1")(x))
        maps = Conv(self.dim, (1, 1), dtype=self.dtype, name="conv2")(x)
        # Of little weight at first: softplus(-1) = 0.31.
        share = self.param("weight", nn.initializers.constant(-1.0), (1,))
        return maps, jax.nn.softplus(share) * match
