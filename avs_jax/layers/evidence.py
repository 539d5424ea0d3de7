"""Where a picture looks like what is heard, from two pretrained classifiers: no training.

For each row a of a table (`data.evidence.Table`): s_a is the score of its sound, w_a its weight,
G_a the probability, in every cell of the picture classifier's last map, of what makes that sound.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.layers.conv import Conv
from avs_jax.types import Array, Float, Int


def look_for_sources(
    cells: Float[Array, "n h w k"], members: Float[Array, "k r"] | Float[np.ndarray, "k r"]
) -> Float[Array, "n h w r"]:
    """Logits of ImageNet's classes in every cell -> G, the probability of each row's classes.

    `members`: 1 where class k makes the sound of row r, else 0. This is what the picture alone
    tells: it may be kept, and met by any sound.
    """
    probabilities = jax.nn.softmax(cells.astype(jnp.float32), axis=-1)
    # HIGHEST: a sum of up to 118 dogs
    return jnp.matmul(probabilities, jnp.asarray(members), precision="highest")


def weigh_sounds(
    logits: Float[Array, "n m"],
    sounds: Int[np.ndarray, "r"],
    weights: Float[np.ndarray, "r"],
) -> Float[Array, "n r"]:
    """Logits of AudioSet's classes -> w_a s_a of each row; `sounds`: the rows' numbers in AudioSet.

    Their maximum over the rows is a gate: it is below 0.003 for most speech, above 0.05 where one
    of the table's sounds is heard.
    """
    scores = jax.nn.sigmoid(logits.astype(jnp.float32))
    return scores[:, sounds] * weights


def evidence_map(
    sources: Float[Array, "n h w r"], heard: Float[Array, "n r"]
) -> Float[Array, "n h w 3"]:
    """Three channels in [0, 1], square roots of

        the maximum over rows of w_a s_a G_a     the best explanation of the sound
        their sum, at most 1                     all of them
        the maximum over rows of G_a             what could sound at all: deaf

    `sources`: of `look_for_sources`; `heard`: of `weigh_sounds`.
    """
    product = sources * heard[:, None, None, :]
    best, total, deaf = product.max(axis=-1), product.sum(axis=-1), sources.max(axis=-1)
    stacked = jnp.stack([best, total, deaf], axis=-1)
    return jnp.sqrt(jnp.clip(stacked, 0.0, 1.0))  # rounding may leave 1 + 1e-7


class EvidenceReader(nn.Module):
    """Evidence as a decoder takes it, and how far it is to be believed, which is learnt.

    Where a picture holds what makes the sound, and holds it in some cells only, the others are
    discounted: by the logarithm of their evidence over the best cell's, times a trust of the frame.
    Where no cell holds it (small things are not seen in cells of 32 pixels), all are alike and none
    is discounted, but for a bias of the frame. Trust and bias are read off the frame's maxima and
    means: few numbers, which mean the same in pictures of any kind.

    trust: what is added to the learnt trust, and what the logarithm of the best cell's evidence is
      worth. For where a network is used on larger things than it learnt on: cells see these, so
      that what they do not see is not there.
    """

    dim: int
    trust: tuple[float, float] = (0.0, 0.0)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, evidence: Float[Array, "n h w 3"], heard: Float[Array, "n r"]
    ) -> tuple[Float[Array, "n h w d"], Float[Array, "n h w 1"]]:
        """`evidence_map`, and `weigh_sounds` -> maps to be added, and what logits are to get."""
        best = evidence[..., :1]
        peak = best.max((1, 2), keepdims=True)
        # 0.001: evidence below it is none
        log_peak = jnp.log(jnp.square(peak) + 1e-3)
        denied = jnp.log(jnp.square(best) + 1e-3) - log_peak  # -6.9 .. 0
        inputs = [evidence, denied / 3, jnp.broadcast_to(peak, best.shape)]
        x = jnp.concatenate(inputs, axis=-1).astype(self.dtype)
        x = jax.nn.gelu(Conv(self.dim, (1, 1), dtype=self.dtype, name="conv1")(x))
        maps = Conv(self.dim, (1, 1), dtype=self.dtype, name="conv2")(x)

        loudest = jnp.sqrt(heard.max(-1, keepdims=True))
        frame = [evidence.max((1, 2)), evidence.mean((1, 2)), loudest, denied.mean((1, 2)) / 3]
        y = jax.nn.gelu(nn.Dense(16, name="frame1")(jnp.concatenate(frame, axis=-1)))
        trust, bias = jnp.split(nn.Dense(2, name="frame2")(y)[:, None, None, :], 2, axis=-1)
        # Little trust at first (softplus(-2) = 0.13): the rest has to learn, too.
        trust = jax.nn.softplus(trust - 2.0) + self.trust[0]
        return maps, trust * denied + bias + self.trust[1] * log_peak
