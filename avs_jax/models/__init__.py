"""The models by name. Needs jax and flax alone."""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.backbones import get_backbone
from avs_jax.models import avesformer, catr, pcmanet

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
