"""Running a model: batch -> inputs -> logits, and their shapes. Needs jax and flax alone."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.media import audio
from avs_jax.types import Array, Bool, Float, PyTree, UInt8


def picture_inputs(
    frames: UInt8[Array, "b t h w 3"],
    normalization: tuple,
    size: int | None = None,
    frame_mask: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b t out_h out_w 3"]:
    """A batch's frames -> what models see. Runs on the device, inside jit.

    Frames that do not exist become zeros after normalisation, the mean colour rather than black,
    as AVSBench pads clips of 5 s among those of 10 s.

    Args:
      normalization: (mean, std) per channel of RGB in [0, 1], see `backbones.get_normalization`.
      size: side to which frames are resized first (antialiased); None keeps them.
      frame_mask: frames that exist; None: all.
    """
    b, t, height, width, c = frames.shape
    pictures = frames.astype(jnp.float32) / 255.0
    if size is not None and (height, width) != (size, size):
        pictures = jax.image.resize(pictures, (b, t, size, size, c), "linear", antialias=True)
    mean, std = (jnp.asarray(values, jnp.float32) for values in normalization)
    pictures = (pictures - mean) / std
    if frame_mask is not None:
        pictures = jnp.where(frame_mask[..., None, None, None], pictures, 0.0)
    return pictures


def sound_inputs(
    waveform: Float[Array, "b s"],
    seconds: int,
    alignment: str = "paper",
    frame_mask: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b t 96 64"]:
    """A batch's sound -> what models hear. Runs on the device, inside jit.

    Seconds that do not exist become zeros, as the frames do.

    Args:
      alignment: of the log-mel patches with the seconds, see `audio.log_mel`.
      frame_mask: seconds that exist; None: all.
    """
    patches = audio.log_mel(waveform, seconds, alignment)
    if frame_mask is not None:
        patches = jnp.where(frame_mask[..., None, None], patches, 0.0)
    return patches


def model_inputs(
    frames: UInt8[Array, "b t h w 3"],
    waveform: Float[Array, "b s"],
    normalization: tuple,
    size: int | None = None,
    alignment: str = "paper",
    frame_mask: Bool[Array, "b t"] | None = None,
) -> tuple[Float[Array, "b t out_h out_w 3"], Float[Array, "b t 96 64"]]:
    """`picture_inputs` and `sound_inputs` of a batch: what models take."""
    return (
        picture_inputs(frames, normalization, size, frame_mask),
        sound_inputs(waveform, frames.shape[1], alignment, frame_mask),
    )


def make_forward(
    model: nn.Module, *, normalization: tuple, size: int | None, alignment: str = "paper"
) -> Callable:
    """`forward(variables, batch) -> f32[b t h w k]` logits at the size of the batch's frames."""

    def forward(variables, batch):
        frames, log_mel = model_inputs(
            batch["frames"], batch["waveform"], normalization, size, alignment, batch["frame_mask"]
        )
        logits = model.apply(variables, frames, log_mel, batch["frame_mask"])["logits"]
        return _resize_logits(logits, batch["frames"].shape[2:4])

    return forward


def make_see(model: nn.Module, *, normalization: tuple, size: int | None) -> Callable:
    """`see(variables, batch) -> seen`: what `make_decide` needs of the pictures, for any sound.

    Reads "frames" and "frame_mask" of the batch. The two after each other are `make_forward`; with
    several sounds for one picture, see once and decide for each.
    """

    def see(variables, batch):
        frames = picture_inputs(batch["frames"], normalization, size, batch["frame_mask"])
        return model.apply(variables, frames, batch["frame_mask"], method="see")

    return see


def make_decide(model: nn.Module, *, size: int | None = None, alignment: str = "paper") -> Callable:
    """`decide(variables, seen, batch) -> f32[b t h w k]` logits at the size of the batch's frames.

    Reads "waveform" and "frame_mask" of the batch, and the shape of "frames".

    Raises:
      BadValueError: `seen` comes from frames of another size.
    """

    def decide(variables, seen, batch):
        if size is not None and seen.size != (size, size):
            raise errors.BadValueError(
                f"seen at {seen.size[0]} x {seen.size[1]}, but to be decided at {size} x {size}; "
                "give make_see and make_decide the same size."
            )
        log_mel = sound_inputs(
            batch["waveform"], batch["frames"].shape[1], alignment, batch["frame_mask"]
        )
        outputs = model.apply(variables, seen, log_mel, batch["frame_mask"], method="decide")
        return _resize_logits(outputs["logits"], batch["frames"].shape[2:4])

    return decide


def _resize_logits(logits, size):
    b, t, height, width, k = logits.shape
    if (height, width) == tuple(size):
        return logits
    return jax.image.resize(logits, (b, t, *size, k), "bilinear", antialias=False)


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
