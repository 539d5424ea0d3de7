"""Two heads that exist in training only and help a network from scratch to find the sound.

Without pretrained backbones a segmentation loss alone stays for long at what the picture tells.
Both heads take their targets from the class ids of `label`; nothing about silent objects is told.
They are not part of any paper: a model has them only if `num_tags` or `num_semantic` is set.
"""

import flax.linen as nn
import jax.numpy as jnp
import optax

from avs_jax.layers.losses import Term, make_term
from avs_jax.types import Array, Bool, Float, Int, PyTree


class AuxiliaryHeads(nn.Module):
    """Names the classes of a second from its sound, and of its pixels from the picture alone.

    num_tags: classes that the sound is asked for; 0 = no such head.
    num_semantic: classes that the pixels are asked for; 0 = no such head.
    """

    num_tags: int = 0
    num_semantic: int = 0

    @nn.compact
    def __call__(
        self, sound: Float[Array, "n d"], maps: Float[Array, "n h w c"], num_clips: int
    ) -> dict[str, Array]:
        """`maps` must not have met the sound yet. -> "tags" [b t k], "semantic" [b t h w k]."""
        outputs = {}
        if self.num_tags:
            tags = nn.Dense(self.num_tags, name="tags")(sound.astype(jnp.float32))
            outputs["tags"] = tags
        if self.num_semantic:
            pixels = nn.Dense(self.num_semantic, name="semantic")(maps.astype(jnp.float32))
            outputs["semantic"] = pixels
        return by_clip(num_clips, **outputs)


def by_clip(num_clips: int, **outputs: Float[Array, "n ..."]) -> dict[str, Float[Array, "b t ..."]]:
    """Frames in a row -> clips of frames."""
    return {name: x.reshape(num_clips, -1, *x.shape[1:]) for name, x in outputs.items()}


def auxiliary_losses(
    outputs: dict[str, PyTree],
    label: Int[Array, "b t h w"],
    frames: Bool[Array, "b t"],
    tag_weight: float = 0.0,
    semantic_weight: float = 0.0,
) -> dict[str, Term]:
    """Losses of the heads that `outputs` holds, over the labelled `frames`.

    tags: binary cross-entropy against the classes in the label of that second (class 1 is tag 0).
    semantic: cross-entropy over the sounding pixels, the label taken at the middle of each cell.
    """
    terms = {}
    if "tags" in outputs:
        tags = outputs["tags"]
        classes = jnp.arange(1, tags.shape[-1] + 1)
        present = (label[..., None] == classes).any((2, 3)).astype(jnp.float32)  # [b t k]
        per_frame = optax.sigmoid_binary_cross_entropy(tags, present).mean(-1)
        terms["tags"] = make_term(per_frame, frames, tag_weight)
    if "semantic" in outputs:
        logits = outputs["semantic"]
        stride = label.shape[2] // logits.shape[2]
        cells = label[:, :, stride // 2 :: stride, stride // 2 :: stride]
        sounding = (cells > 0) & frames[:, :, None, None]
        target = jnp.maximum(cells - 1, 0)
        per_cell = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        terms["semantic"] = make_term(per_cell, sounding, semantic_weight)
    return terms
