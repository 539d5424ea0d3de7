"""Position codes."""

import math

import jax.numpy as jnp

from avs_jax.types import Array, Float


def sine_positions_2d(
    height: int, width: int, dim: int, *, temperature: float = 10_000.0, eps: float = 1e-6
) -> Float[Array, "h w d"]:
    """The 2-D sine code of DETR (arXiv 2005.12872, appendix A.4), normalised to the map's size.

    Rows and columns count from 1 and are divided by the last one, times 2 pi, so that the code does
    not depend on the resolution; the first half of the channels is for y, the second for x; sine
    and cosine alternate.
    """
    half = dim // 2
    exponent = 2 * (jnp.arange(half) // 2) / half
    frequencies = temperature**exponent

    def encode(length):
        index = jnp.arange(1, length + 1, dtype=jnp.float32)
        angles = (index / (length + eps) * 2 * math.pi)[:, None] / frequencies
        even = jnp.arange(half) % 2 == 0
        return jnp.where(even, jnp.sin(angles), jnp.cos(angles))  # [length half]

    y = jnp.broadcast_to(encode(height)[:, None], (height, width, half))
    x = jnp.broadcast_to(encode(width)[None], (height, width, half))
    return jnp.concatenate([y, x], axis=-1)
