"""Running a model: batch -> inputs -> logits, and their shapes. Needs jax and flax alone."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.media import audio
from avs_jax.types import Array, Bool, Float, PyTree, UInt8


def model_inputs(
    frames: UInt8[Array, "b t h w 3"],
    waveform: Float[Array, "b s"],
    normalization: tuple,
    size: int | None = None,
    alignment: str = "paper",
    frame_mask: Bool[Array, "b t"] | None = None,
) -> tuple[Float[Array, "b t out_h out_w 3"], Float[Array, "b t 96 64"]]:
    """A batch's frames and sound -> what models take. Runs on the device, inside jit.

    Frames that do not exist become zeros after normalisation, the mean colour rather than black,
    as AVSBench pads clips of 5 s among those of 10 s; so do their patches of sound.

    Args:
      normalization: (mean, std) per channel of RGB in [0, 1], see `backbones.get_normalization`.
      size: side to which frames are resized first (antialiased); None keeps them.
      alignment: of the log-mel patches with the seconds, see `audio.log_mel`.
      frame_mask: frames that exist; None: all.
    """
    b, t, height, width, c = frames.shape
    pictures = frames.astype(jnp.float32) / 255.0
    if size is not None and (height, width) != (size, size):
        pictures = jax.image.resize(pictures, (b, t, size, size, c), "linear", antialias=True)
    mean, std = (jnp.asarray(values, jnp.float32) for values in normalization)
    pictures, patches = (pictures - mean) / std, audio.log_mel(waveform, t, alignment)
    if frame_mask is not None:
        pictures = jnp.where(frame_mask[..., None, None, None], pictures, 0.0)
        patches = jnp.where(frame_mask[..., None, None], patches, 0.0)
    return pictures, patches


def make_forward(
    model: nn.Module, *, normalization: tuple, size: int | None, alignment: str = "paper"
) -> Callable:
    """`forward(variables, batch) -> f32[b t h w k]` logits at the size of the batch's frames."""

    def forward(variables, batch):
        height, width = batch["frames"].shape[2:4]
        frames, log_mel = model_inputs(
            batch["frames"], batch["waveform"], normalization, size, alignment, batch["frame_mask"]
        )
        logits = model.apply(variables, frames, log_mel, batch["frame_mask"])["logits"]
        b, t, _, _, k = logits.shape
        if logits.shape[2:4] == (height, width):
            return logits
        return jax.image.resize(logits, (b, t, height, width, k), "bilinear", antialias=False)

    return forward


def example_inputs(seconds: int, size: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of one clip as a model takes it: frames and log-mel."""
    return (
        jax.ShapeDtypeStruct((1, seconds, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, seconds, 96, 64), jnp.float32),
    )


def init_shapes(model: nn.Module, seconds: int, size: int) -> dict[str, PyTree]:
    """The shapes of the model's variables, without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0), *example_inputs(seconds, size))


def count_params(params: PyTree) -> int:
    """How many numbers."""
    return sum(x.size for x in jax.tree.leaves(params))
