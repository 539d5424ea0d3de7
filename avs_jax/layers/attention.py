"""Multi-head attention and the feed-forward block of a transformer layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.types import Array, Bool, Float

# Attention weights of one sequence that may exist at a time: 8 MB in float32. All of 56 x 56 tokens
# with 8 heads would be 315 MB a frame. On CPU tiles of this size are also faster than the whole.
MAX_WEIGHTS = 2**21


def attend(
    query: Float[Array, "n q heads d"],
    key: Float[Array, "n k heads d"],
    value: Float[Array, "n k heads d"],
    key_mask: Bool[Array, "n k"] | None = None,
    max_weights: int = MAX_WEIGHTS,
) -> Float[Array, "n q heads d"]:
    """Scaled dot-product attention, by tiles of queries where the weights would fill the memory.

    Of the weights [n heads q k] never more than `max_weights` per sequence exist at once; the
    backward pass computes those of a tile again. The limit is per sequence, so that tiles do not
    shrink with the batch or with the number of devices. Within a tile XLA decides; cuDNN's
    fused kernel, for half precision alone, is not asked for.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    n, num_queries, heads, dim = query.shape
    tile = max(1, max_weights // (heads * key.shape[1]))
    if tile >= num_queries:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    num_tiles = -(-num_queries // tile)
    tile = -(-num_queries // num_tiles)  # even tiles: the least padding
    padded = jnp.pad(query, ((0, 0), (0, num_tiles * tile - num_queries), (0, 0), (0, 0)))
    tiles = jnp.moveaxis(padded.reshape(n, num_tiles, tile, heads, dim), 1, 0)
    mixed = jax.lax.map(
        jax.checkpoint(lambda q: jax.nn.dot_product_attention(q, key, value, mask=mask)), tiles
    )
    return jnp.moveaxis(mixed, 0, 1).reshape(n, -1, heads, dim)[:, :num_queries]


class MultiHeadAttention(nn.Module):
    """Attention with `num_heads` heads (arXiv 1706.03762, section 3.2), see `attend`.

    Query, key and value are projected from inputs of any width to that of the query.
    """

    num_heads: int
    use_bias: bool = True
    projection_init: Callable = nn.initializers.lecun_normal()  # of query, key and value
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "n q d"],
        key: Float[Array, "n k dk"],
        value: Float[Array, "n k dv"],
        key_mask: Bool[Array, "n k"] | None = None,
    ) -> Float[Array, "n q d"]:
        """`key_mask` is True for the keys that may be looked at."""
        n, num_queries, dim = query.shape
        if dim % self.num_heads:
            raise ValueError(f"width {dim} is not a multiple of num_heads={self.num_heads}")

        def project(x, name):
            dense = nn.Dense(
                dim,
                use_bias=self.use_bias,
                kernel_init=self.projection_init,
                dtype=self.dtype,
                name=name,
            )
            # Two dimensions: XLA's CPU matmul is about 1.6x slower on [n tokens d].
            x = dense(x.reshape(-1, x.shape[-1]))
            return x.reshape(n, -1, self.num_heads, dim // self.num_heads)

        mixed = attend(
            project(query, "query"), project(key, "key"), project(value, "value"), key_mask
        )
        mixed = nn.Dense(dim, use_bias=self.use_bias, dtype=self.dtype, name="out")(
            mixed.reshape(-1, dim)
        )
        return mixed.reshape(n, num_queries, dim)


class FeedForward(nn.Module):
    """Dense, activation, Dense back to the width of the input."""

    hidden: int
    activation: Callable = jax.nn.gelu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s d"]) -> Float[Array, "n s d"]:
        flat = x.reshape(-1, x.shape[-1])  # see MultiHeadAttention
        flat = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(flat))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(flat).reshape(x.shape)
