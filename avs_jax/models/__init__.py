"""The models by name, and what turns a batch into their inputs. Needs jax and flax alone."""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax import audio, errors
from avs_jax.backbones import get_backbone
from avs_jax.models import avesformer, catr, pcmanet
from avs_jax.types import Array, Bool, Float, UInt8

# name -> (file, its whole network)
MODELS: dict[str, tuple[ModuleType, type[nn.Module]]] = {
    "avesformer": (avesformer, avesformer.AVESFormer),
    "catr": (catr, catr.CATR),
    "pcmanet": (pcmanet, pcmanet.PCMANet),
}
DTYPES = ("float32", "bfloat16", "float64")  # the last one under jax.enable_x64, to study rounding


def _find(name: str) -> tuple[ModuleType, type[nn.Module]]:
    if name not in MODELS:
        raise errors.unknown_name("model", name, MODELS)
    return MODELS[name]


def get_model(
    name: str,
    backbone: str = "resnet50",
    num_classes: int = 1,
    *,
    audio_backbone: str = "vggish",
    dtype: str = "float32",
    remat: bool = False,
    **fields,
) -> nn.Module:
    """The network `name` on a picture and a sound backbone.

    Args:
      name: a key of MODELS.
      backbone, audio_backbone: keys of `avs_jax.backbones.BACKBONES`.
      num_classes: 1 for "does it sound?" (S4, MS3), 71 for AVSS.
      dtype: compute dtype, one of DTYPES; parameters, statistics and logits stay as they are,
        float32.
      remat: recompute blocks in the backward pass, to save memory.
      **fields: further fields of the model's module.

    Raises:
      UnknownNameError: unknown model, backbone, field or dtype.
    """
    _, network = _find(name)
    known = {f.name for f in dataclasses.fields(network)} - {"parent", "name"}
    for field in fields:
        if field not in known:
            raise errors.unknown_name(f"field of model {name!r}", field, known)
    if dtype not in DTYPES:
        raise errors.unknown_name("dtype", dtype, DTYPES)
    compute = jnp.dtype(dtype)
    return network(
        backbone=get_backbone(backbone, dtype=compute, remat=remat),
        audio_backbone=get_backbone(audio_backbone, dtype=compute),
        num_classes=num_classes,
        dtype=compute,
        remat=remat,
        **fields,
    )


def get_loss(name: str) -> Callable:
    """`loss(outputs, batch, **weights) -> (scalar, {name: scalar})`, as in the paper of `name`."""
    return _find(name)[0].loss


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
