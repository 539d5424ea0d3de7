"""Multi-head attention and the feed-forward block of a transformer layer."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.types import Array, Bool, Float


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with `num_heads` heads (arXiv 1706.03762, section 3.2).

    The fused kernel of the platform is used where there is one. Query, key and value are projected
    from inputs of any width to that of the query.
    """

    num_heads: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

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
            # Two dimensions: XLA's CPU matmul is about 1.6x slower on [n tokens d].
            x = nn.Dense(dim, use_bias=self.use_bias, dtype=self.dtype, name=name)(
                x.reshape(-1, x.shape[-1])
            )
            return x.reshape(n, -1, self.num_heads, dim // self.num_heads)

        mask = None if key_mask is None else key_mask[:, None, None, :]
        mixed = jax.nn.dot_product_attention(
            project(query, "query"), project(key, "key"), project(value, "value"), mask=mask
        )
        mixed = nn.Dense(dim, use_bias=self.use_bias, dtype=self.dtype, name="out")(
            mixed.reshape(-1, dim)
        )
        return mixed.reshape(n, num_queries, dim)


class FeedForward(nn.Module):
    """Dense, activation, Dense back to the width of the input."""

    hidden: int
    activation: Callable = jax.nn.gelu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s d"]) -> Float[Array, "n s d"]:
        flat = x.reshape(-1, x.shape[-1])  # see MultiHeadAttention
        flat = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(flat))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(flat).reshape(x.shape)
