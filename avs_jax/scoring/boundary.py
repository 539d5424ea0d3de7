"""DAVIS measures of a mask: region similarity J, boundary accuracy F (Perazzi et al., CVPR 2016).

Unlike AVSBench's IoU, an empty frame is all or nothing here: 1 where both masks are empty, 0 where
only one is. Both measures take masks, not probabilities.
"""

import math

import jax.numpy as jnp

from avs_jax.types import Array, Bool, Float

TOLERANCE = 0.008  # of the image's diagonal, DAVIS


def region_similarity(
    predicted: Bool[Array, "*b h w"], target: Bool[Array, "*b h w"]
) -> Float[Array, "*b"]:
    """J: intersection over union of each frame."""
    inter = _count(predicted & target)
    union = _count(predicted | target)
    return jnp.where(union > 0, inter / jnp.maximum(union, 1), 1.0)


def boundary_accuracy(
    predicted: Bool[Array, "*b h w"], target: Bool[Array, "*b h w"], tolerance: float = TOLERANCE
) -> Float[Array, "*b"]:
    """F: how well the outlines of each frame agree, forgiving a distance of `tolerance` diagonals.

    Precision is the part of the predicted outline within a disk of that radius (rounded up) from
    the true one, recall the reverse, F their harmonic mean.
    """
    height, width = predicted.shape[-2:]
    radius = math.ceil(tolerance * math.hypot(height, width))
    ours, theirs = outline(predicted), outline(target)
    num_ours, num_theirs = _count(ours), _count(theirs)
    precision = _count(ours & dilate(theirs, radius)) / jnp.maximum(num_ours, 1)
    recall = _count(theirs & dilate(ours, radius)) / jnp.maximum(num_theirs, 1)
    # Nothing predicted is precise, nothing to find is found.
    precision = jnp.where(num_ours == 0, 1.0, precision)
    recall = jnp.where(num_theirs == 0, 1.0, recall)
    return 2 * precision * recall / jnp.maximum(precision + recall, 1e-20)


def outline(mask: Bool[Array, "*b h w"]) -> Bool[Array, "*b h w"]:
    """Pixels that differ from their right, lower or lower right neighbour: one pixel wide.

    Pixels beyond the border count as equal to the nearest one inside.
    """
    edges = [(0, 0)] * (mask.ndim - 2) + [(0, 1), (0, 1)]
    padded = jnp.pad(mask, edges, mode="edge")
    right, below = padded[..., :-1, 1:], padded[..., 1:, :-1]
    return (mask ^ right) | (mask ^ below) | (mask ^ padded[..., 1:, 1:])


def dilate(mask: Bool[Array, "*b h w"], radius: int) -> Bool[Array, "*b h w"]:
    """Pixels with a set one at most `radius` pixels away (a disk, dx^2 + dy^2 <= radius^2)."""
    height, width = mask.shape[-2:]
    rows = [(0, 0)] * (mask.ndim - 2) + [(radius, radius), (0, 0)]
    columns = [(0, 0)] * (mask.ndim - 2) + [(0, 0), (radius + 1, radius)]
    # [.. h + 2r, w + 2r + 1]: how many are set to the left, so that any row segment of the disk is
    # one difference, and the disk 2r + 1 of them.
    before = jnp.cumsum(jnp.pad(jnp.pad(mask, rows), columns).astype(jnp.int32), axis=-1)
    reached = jnp.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - dy**2)
        part = before[..., radius + dy : radius + dy + height, :]
        last = part[..., radius + 1 + half : radius + 1 + half + width]
        first = part[..., radius - half : radius - half + width]
        reached |= last > first
    return reached


def _count(mask):
    return mask.sum((-2, -1), dtype=jnp.int32)
