"""Resizing of maps, with PyTorch's conventions."""

import jax

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
