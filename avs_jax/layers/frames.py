"""Clips as frames: backbones take one frame, or one second of sound, at a time."""

import flax.linen as nn

from avs_jax.types import Array, Bool, Float, PyTree


def flatten_clips(x: Float[Array, "b t ..."]) -> Float[Array, "n ..."]:
    """[b t ...] -> [b*t ...]."""
    return x.reshape(-1, *x.shape[2:])


def run_backbone(
    backbone: nn.Module,
    x: Float[Array, "b t ..."],
    frame_mask: Bool[Array, "b t"] | None,
    train: bool,
) -> PyTree:
    """What `backbone` gives for every frame, or every second of sound, of all clips: [b*t ...].

    `frame_mask`: the ones that batch statistics are taken over; None: all.
    """
    frame_mask = None if frame_mask is None else frame_mask.reshape(-1)
    return backbone(flatten_clips(x), train=train, frame_mask=frame_mask)
