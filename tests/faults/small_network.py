"""The smallest network that is a model: programs run it as they run the published ones.

It sees the mean of a pixel's colours and hears the mean of a second; batch statistics included. A
train program spends its time on itself, in place of on tracing and compiling.
"""

import sys

import flax.linen as nn
import jax.numpy as jnp

from avs_jax import models
from avs_jax.layers.regime import Regime
from avs_jax.models import avesformer
from avs_jax.models.avesformer import Seen


class SmallNetwork(nn.Module):
    """The contract of `avs_jax.models`, with neither of the backbones."""

    backbone: nn.Module
    audio_backbone: nn.Module
    num_classes: int = 1
    width: int = 8
    num_tags: int = 0
    num_semantic: int = 0
    remat: str | bool = "none"
    regime: Regime = Regime()
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.look = nn.Dense(self.width)
        self.norm = nn.BatchNorm(momentum=0.9)
        self.listen = nn.Dense(self.width)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        return self.decide(self.see(frames, frame_mask, train), log_mel, frame_mask, train)

    def see(self, frames, frame_mask=None, train=False):
        b, t, height, width, _ = frames.shape
        maps = self.norm(self.look(frames), use_running_average=not train)
        return Seen(maps.reshape(b * t, height, width, -1), maps, (height, width))

    def decide(self, seen, log_mel, frame_mask=None, train=False):
        sound = self.listen(log_mel.mean(axis=2))  # [b t width]
        return {"logits": self.head(jnp.tanh(seen.c2 * sound[:, :, None, None]))}


def loss(outputs, batch, *, dice_weight: float = 1.0):
    """That of AVESFormer, without its auxiliary heads."""
    return avesformer.loss(outputs, batch, dice_weight=dice_weight)


def register() -> None:
    """From now on it is a model by its name: for programs, not for tests of all models."""
    models.MODELS["small_network"] = (sys.modules[__name__], SmallNetwork)
