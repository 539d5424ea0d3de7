"""Backbones by name: pictures to a pyramid of four maps, sound to a feature.

    get_backbone("resnet50").apply(variables, x f32[n h w 3], train=False, frame_mask=None)
        -> four maps [n h/s w/s c], s = 4, 8, 16, 32; c in its `channels`
    get_backbone("vggish").apply(variables, log_mel f32[n 96 64], train=False, frame_mask=None)
        -> features [n d], d its `features`

Every backbone has the fields `dtype`, the compute type (parameters stay float32), and `regime`,
what training does with batch statistics and frozen parts (`layers/regime.py`).
"""

from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from functools import partial

import numpy as np
from flax import linen as nn

from avs_jax import errors
from avs_jax.backbones import efficientnet_lite
from avs_jax.backbones.efficientnet_lite import efficientnet_lite0
from avs_jax.backbones.light import AudioCNN, small_resnet
from avs_jax.backbones.pvt_v2 import (
    pvt_v2_b0,
    pvt_v2_b1,
    pvt_v2_b2,
    pvt_v2_b3,
    pvt_v2_b4,
    pvt_v2_b5,
)
from avs_jax.backbones.resnet import resnet18, resnet50
from avs_jax.backbones.vggish import VGGish
from avs_jax.backbones.yamnet import YAMNet
from avs_jax.types import Float

PICTURE_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "pvt_v2_b0": pvt_v2_b0,
    "pvt_v2_b1": pvt_v2_b1,
    "pvt_v2_b2": pvt_v2_b2,
    "pvt_v2_b3": pvt_v2_b3,
    "pvt_v2_b4": pvt_v2_b4,
    "pvt_v2_b5": pvt_v2_b5,
    "efficientnet_lite0": efficientnet_lite0,
    "small_resnet": small_resnet,
}
SOUND_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "vggish": VGGish,
    "yamnet": YAMNet,
    "audio_cnn": AudioCNN,
}
BACKBONES = PICTURE_BACKBONES | SOUND_BACKBONES
# Made with this `num_classes` they have their published classifier, `classify`: of ImageNet's and
# AudioSet's classes, as numbered in data/evidence.py.
CLASSIFIERS = {"efficientnet_lite0": 1000, "yamnet": 521}

# ImageNet, RGB in [0, 1]: what the published picture backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_OTHER_NORMALIZATIONS = {"efficientnet_lite0": (efficientnet_lite.MEAN, efficientnet_lite.STD)}


def get_backbone(name: str, **fields) -> nn.Module:
    """The backbone `name` with the module's `fields` (e.g. dtype, remat) replaced.

    Raises:
      UnknownNameError: for an unknown name or field, with the known ones.
    """
    if name not in BACKBONES:
        raise errors.unknown_name("backbone", name, BACKBONES)
    constructor = BACKBONES[name]
    module = constructor.func if isinstance(constructor, partial) else constructor
    known = {field.name for field in dataclass_fields(module)} - {"parent", "name"}
    for field in fields:
        if field not in known | {"name"}:
            raise errors.unknown_name(f"field of backbone {name}", field, known)
    return constructor(**fields)


def get_normalization(name: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """(mean, std) that the picture backbone `name` expects taken off RGB scaled to [0, 1].

    Raises:
      UnknownNameError: for what is not a picture backbone.
    """
    if name not in PICTURE_BACKBONES:
        raise errors.unknown_name("picture backbone", name, PICTURE_BACKBONES)
    mean, std = _OTHER_NORMALIZATIONS.get(name, (IMAGENET_MEAN, IMAGENET_STD))
    return np.array(mean, np.float32), np.array(std, np.float32)
