"""Multi-head attention and the feed-forward block of a transformer layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.types import Array, Bool, Float

# Attention weights of one sequence that may exist at a time: 8 MB in float32. All of 56 x 56 tokens
# with 8 heads would be 315 MB a frame. On CPU half of it, which is also faster than the whole.
MAX_WEIGHTS = 2**21
_MAX_WEIGHTS_CPU = 2**20


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

    On CPU what was attended to is divided by the sum of the weights, not each weight: XLA (jax
    0.10) lays all weights out anew to divide them (8 heads of 32, 789 queries and keys: 64 ms, not
    167).
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    on_cpu = partial(_by_tiles, _divide_last, min(max_weights, _MAX_WEIGHTS_CPU))
    by_xla = partial(_by_tiles, jax.nn.dot_product_attention, max_weights)
    return jax.lax.platform_dependent(query, key, value, mask, cpu=on_cpu, default=by_xla)


def _by_tiles(attend_tile, max_weights, query, key, value, mask):
    n, num_queries, heads, dim = query.shape
    tile = max(1, max_weights // (heads * key.shape[1]))
    if tile >= num_queries:
        return attend_tile(query, key, value, mask=mask)
    num_tiles = -(-num_queries // tile)
    tile = -(-num_queries // num_tiles)  # even tiles: the least padding
    padded = jnp.pad(query, ((0, 0), (0, num_tiles * tile - num_queries), (0, 0), (0, 0)))
    tiles = jnp.moveaxis(padded.reshape(n, num_tiles, tile, heads, dim), 1, 0)
    mixed = jax.lax.map(jax.checkpoint(lambda q: attend_tile(q, key, value, mask=mask)), tiles)
    return jnp.moveaxis(mixed, 0, 1).reshape(n, -1, heads, dim)[:, :num_queries]


def _divide_last(query, key, value, mask):
    """As `jax.nn.dot_product_attention`, weights in float32 or what is wider."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    product = partial(jnp.einsum, preferred_element_type=wide)
    scores = product("nhqd,nhkd->nhqk", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, 0.7 * jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = product("nhqk,nhkd->nhqd", weights.astype(value.dtype), value)
    mixed = mixed / weights.sum(-1, keepdims=True)
    return mixed.astype(value.dtype).transpose(0, 2, 1, 3)


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
