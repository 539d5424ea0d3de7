"""A batch of two clips, one with a single labelled frame, one with eight, and losses of all terms.

Means of the two clips, averaged, are not the batch's mean.
"""

import functools
import inspect

import jax.numpy as jnp
import numpy as np

from avs_jax.models import MODELS, get_loss

FRAMES, SIZE, QUERIES, LAYERS = 8, 16, 5, 2
CASES = [(name, k) for name in MODELS for k in (1, 4)]


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (2, FRAMES, SIZE, SIZE))
    label[rng.random((2, FRAMES)) < 0.3] = 0  # silent frames
    label[0, 0, :3] = 1  # in the only labelled one few pixels sound: few cells to name
    label[0, 0, 3:] = 0
    label_mask = np.ones((2, FRAMES), bool)
    label_mask[0, 1:] = False
    return {
        "label": jnp.asarray(label, jnp.int32),
        "label_mask": jnp.asarray(label_mask),
        "frame_mask": jnp.ones((2, FRAMES), bool),
    }


def loss_of_every_term(name):
    """The model's loss with all of its terms in the total."""
    loss = get_loss(name)
    weights = {"tag_weight": 0.7, "semantic_weight": 0.3, "balanced_ce_weight": 0.5}
    known = inspect.signature(loss).parameters
    return functools.partial(loss, **{n: w for n, w in weights.items() if n in known})
