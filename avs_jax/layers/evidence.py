"""Where a picture looks like what is heard, from two pretrained classifiers: no training.

For each row a of a table (`data.evidence.Table`): s_a is the score of its sound, w_a its weight,
G_a the probability, in every cell of the picture classifier's last map, of what makes that sound.
"""

import jax
import jax.numpy as jnp
import numpy as np

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
