"""A model as the evaluator runs it: what it sees, and what it decides with a sound.

Test-time augmentation looks at the same clip several times, and averages what the model decides:

    flip     and mirrored, left for right
    scales   and at 3/4 and 5/4 of the size (to whole multiples of 32, the deepest stride)

Both together give all six. The average is of probabilities (sigmoid, softmax), at the size of the
frames, as in semantic segmentation at large; it is given as logits, so that every figure is made
as without.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from avs_jax import errors
from avs_jax.backbones import get_normalization
from avs_jax.models.forward import make_decide, make_see
from avs_jax.types import Array, Float, PyTree

AUGMENTATIONS = ("flip", "scales")
SCALES = (1.0, 0.75, 1.25)

_STRIDE = 32  # of the deepest map: sizes are multiples of it, as those of training


class Network(NamedTuple):
    """What a model does, as pure functions; pictures are looked at once for all sounds.

    see: (variables, batch of frames u8[b t h w 3] and frame_mask) -> what pictures alone give.
    decide: (variables, seen, the same batch with waveform f32[b s]) -> logits f32[b t h w k].
    """

    see: Callable[[PyTree, dict], PyTree]
    decide: Callable[[PyTree, PyTree, dict], Float[Array, "b t h w k"]]


def make_network(
    model: nn.Module,
    config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict,
    augment: Sequence[str] = (),
) -> Network:
    """A model with the inputs that its config says, seen in one way or more.

    Args:
      config: reads model.backbone and data {size, alignment}.
      augment: of AUGMENTATIONS.

    Raises:
      UnknownNameError: for one of `augment`.
    """
    for name in augment:
        if name not in AUGMENTATIONS:
            raise errors.unknown_name("test-time augmentation", name, AUGMENTATIONS)
    scales = SCALES if "scales" in augment else (1.0,)
    mirrored = (False, True) if "flip" in augment else (False,)
    normalization = get_normalization(config.model.backbone)

    def view(scale, mirror):
        size = scaled(config.data.size, scale)
        network = Network(
            make_see(model, normalization=normalization, size=size),
            make_decide(model, size=size, alignment=config.data.alignment),
        )
        return flip(network) if mirror else network

    views = [view(*which) for which in itertools.product(scales, mirrored)]
    return views[0] if len(views) == 1 else average(views)


def scaled(size: int, scale: float) -> int:
    """The size of a view in pixels."""
    return size if scale == 1 else max(int(size * scale / _STRIDE + 0.5), 1) * _STRIDE


def flip(network: Network) -> Network:
    """Looks at mirrored frames, and mirrors the logits back."""

    def mirror(batch):
        return batch | {"frames": batch["frames"][..., ::-1, :]}

    return Network(
        lambda variables, batch: network.see(variables, mirror(batch)),
        lambda variables, seen, batch: network.decide(variables, seen, mirror(batch))[..., ::-1, :],
    )


def average(networks: Sequence[Network]) -> Network:
    """Logits of the mean of the networks' probabilities."""

    def see(variables, batch):
        return tuple(network.see(variables, batch) for network in networks)

    def decide(variables, seen, batch):
        return average_logits(
            jnp.stack([n.decide(variables, s, batch) for n, s in zip(networks, seen, strict=True)])
        )

    return Network(see, decide)


def average_logits(logits: Float[Array, "n *b k"]) -> Float[Array, "*b k"]:
    """Logits of the mean of n probabilities; by logarithms, so that they stay finite."""
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return jax.nn.logsumexp(yes, axis=0) - jax.nn.logsumexp(no, axis=0)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))
