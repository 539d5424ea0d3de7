"""Resizing of maps, with PyTorch's conventions."""

import jax
import jax.numpy as jnp

from avs_jax.types import Array, Float


def resize_bilinear(
    maps: Float[Array, "n h w c"], size: tuple[int, int]
) -> Float[Array, "n out_h out_w c"]:
    """Bilinear with half-pixel centres and clamped edges, without antialiasing.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. Already the
    right size: returned as it is.
    """
    n, height, width, c = maps.shape
    if (height, width) == tuple(size):
        return maps
    return jax.image.resize(maps, (n, *size, c), "bilinear", antialias=False)


def resize_masks(
    masks: Float[Array, "*b h w"], size: tuple[int, int]
) -> Float[Array, "*b out_h out_w"]:
    """`resize_bilinear` of the last two axes."""
    flat = masks.reshape(-1, *masks.shape[-2:], 1)
    return resize_bilinear(flat, size).reshape(*masks.shape[:-2], *size)


def resize_nearest(
    maps: Float[Array, "n h w c"], size: tuple[int, int]
) -> Float[Array, "n out_h out_w c"]:
    """Cell i is cell floor(i * old / new), as in PyTorch (jax.image.resize takes the middle)."""
    rows, columns = (
        jnp.arange(new) * old // new for new, old in zip(size, maps.shape[1:3], strict=True)
    )
    return maps[:, rows][:, :, columns]
