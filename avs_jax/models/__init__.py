"""The models by name. Needs jax and flax alone."""

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType

import flax.linen as nn
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.backbones import CLASSIFIERS, get_backbone
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import read_remat
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
    remat: str | bool = "none",
    norm: str = "global",
    norm_devices: int = 1,
    two_pass_variance: bool | None = None,
    running_statistics: str = "first",
    frozen: Sequence[str] = (),
    **fields,
) -> nn.Module:
    """The network `name` on a picture and a sound backbone.

    Args:
      name: a key of MODELS.
      backbone, audio_backbone: keys of `avs_jax.backbones.BACKBONES`.
      num_classes: 1 for "does it sound?" (S4, MS3), 71 for AVSS.
      dtype: compute dtype, one of DTYPES; parameters, statistics and logits stay as they are,
        float32.
      remat: what the backward pass computes again to save memory, a key of
        `layers.remat.POLICIES`; True is "blocks", False "none".
      norm: whose batch statistics training uses, one of `layers.regime.NORMS`.
      norm_devices: that share a batch, for norm="per_device": the size of the mesh.
      two_pass_variance: see `layers.regime.Regime`; None decides by the platform.
      running_statistics: which ones they are with norm="per_device", one of
        `layers.regime.RUNNING_STATISTICS`.
      frozen: module paths that run as in evaluation even in training, e.g. "audio_backbone".
      **fields: further fields of the model's module.

    Raises:
      UnknownNameError: unknown model, backbone, field, dtype, norm, running_statistics or remat;
        with evidence a backbone that is no classifier.
    """
    _, network = _find(name)
    known = {f.name for f in dataclasses.fields(network)} - {"parent", "name", "regime"}
    for field in fields:
        if field not in known:
            raise errors.unknown_name(f"field of model {name!r}", field, known)
    if dtype not in DTYPES:
        raise errors.unknown_name("dtype", dtype, DTYPES)
    remat = read_remat(remat)
    regime = Regime(norm, norm_devices, two_pass_variance, running_statistics, tuple(frozen))
    common = {"dtype": jnp.dtype(dtype), "regime": regime}
    heads = [{}, {}]
    if fields.get("evidence"):
        heads = [{"num_classes": _count_classes(which)} for which in (backbone, audio_backbone)]
    return network(
        backbone=get_backbone(backbone, remat=remat, **common, **heads[0]),
        audio_backbone=get_backbone(audio_backbone, **common, **heads[1]),
        num_classes=num_classes,
        remat=remat,
        **common,
        **fields,
    )


def _count_classes(backbone: str) -> int:
    if backbone not in CLASSIFIERS:
        raise errors.unknown_name("backbone for evidence", backbone, CLASSIFIERS)
    return CLASSIFIERS[backbone]


def get_loss(name: str) -> Callable:
    """`loss(outputs, batch, **weights) -> {name: Term}`, as in the paper of `name`."""
    return _find(name)[0].loss
