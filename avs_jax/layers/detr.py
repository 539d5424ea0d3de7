"""Transformer layers of DETR (arXiv 2005.12872, figure 10): post-norm, positions in every layer.

Positions are added to query and key of an attention, never to its values. As DETR's code has them,
but for no dropout on attention weights (there 0.1 too), which are never all in memory.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from avs_jax.layers.attention import MultiHeadAttention
from avs_jax.layers.dropout import Dropout
from avs_jax.layers.regime import Regime
from avs_jax.types import Array, Bool, Float

EPSILON = 1e-5  # PyTorch's default
# Query, key and value were one matrix [3d d] when Xavier's bound was taken.
packed_xavier = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")
Attention = functools.partial(MultiHeadAttention, projection_init=packed_xavier)
_dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
# Two passes, see backbones/pvt_v2.py.
_layer_norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, use_fast_variance=False)


class EncoderLayer(nn.Module):
    """Self-attention with positions on query and key, feed-forward."""

    num_heads: int
    hidden: int
    dropout: float
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n s d"],
        positions: Float[Array, "s d"],
        key_mask: Bool[Array, "n s"] | None = None,
        train: bool = False,
    ) -> Float[Array, "n s d"]:
        dtype, drop = self.dtype, Dropout(self.dropout, regime=self.regime)
        query = x + positions
        y = Attention(self.num_heads, dtype=dtype, name="self_attention")(query, query, x, key_mask)
        x = _layer_norm(dtype=dtype, name="norm1")(x + drop(y, train))

        flat = x.reshape(-1, x.shape[-1])  # two dimensions, see MultiHeadAttention
        y = drop(_relu(_dense(self.hidden, dtype=dtype, name="linear1")(flat)), train)
        y = _dense(x.shape[-1], dtype=dtype, name="linear2")(y).reshape(x.shape)
        return _layer_norm(dtype=dtype, name="norm2")(x + drop(y, train))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the memory of their frame."""

    num_heads: int
    hidden: int
    dropout: float
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n q d"],
        queries: Float[Array, "q d"],
        memory: Float[Array, "n s d"],
        positions: Float[Array, "s d"],
        key_mask: Bool[Array, "n s"] | None = None,
        train: bool = False,
    ) -> Float[Array, "n q d"]:
        dtype, drop = self.dtype, Dropout(self.dropout, regime=self.regime)
        y = Attention(self.num_heads, dtype=dtype, name="self_attention")(
            x + queries, x + queries, x
        )
        x = _layer_norm(dtype=dtype, name="norm1")(x + drop(y, train))
        y = Attention(self.num_heads, dtype=dtype, name="cross_attention")(
            x + queries, memory + positions, memory, key_mask
        )
        x = _layer_norm(dtype=dtype, name="norm2")(x + drop(y, train))

        flat = x.reshape(-1, x.shape[-1])
        y = drop(_relu(_dense(self.hidden, dtype=dtype, name="linear1")(flat)), train)
        y = _dense(x.shape[-1], dtype=dtype, name="linear2")(y).reshape(x.shape)
        return _layer_norm(dtype=dtype, name="norm3")(x + drop(y, train))


def _relu(x):
    # As a maximum XLA's CPU program keeps its zeros, the size of x, in memory.
    return jnp.where(x <= 0, 0.0, x)
