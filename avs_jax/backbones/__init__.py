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
    "small_resnet": small_resnet,
}
SOUND_BACKBONES: dict[str, Callable[..., nn.Module]] = {"vggish": VGGish, "audio_cnn": AudioCNN}
BACKBONES = PICTURE_BACKBONES | SOUND_BACKBONES

# ImageNet, RGB in [0, 1]: what every published picture backbone was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    return np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
