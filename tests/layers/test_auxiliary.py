"""The training heads: targets from class ids, labelled frames only."""

import jax.numpy as jnp
import numpy as np

from avs_jax.layers.auxiliary import auxiliary_losses
from avs_jax.layers.losses import means


def test_tag_loss_is_small_for_the_classes_that_sound_and_large_for_others():
    label = jnp.zeros((1, 2, 8, 8), jnp.int32).at[0, 0, :4].set(2).at[0, 1, :4].set(3)
    frames = jnp.ones((1, 2), bool)
    right = jnp.array([[[-9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]]])  # tags of classes 1, 2, 3
    assert means(auxiliary_losses({"tags": right}, label, frames))["tags"] < 1e-3
    assert means(auxiliary_losses({"tags": -right}, label, frames))["tags"] > 5


def test_frames_without_label_do_not_count():
    label = jnp.zeros((1, 2, 8, 8), jnp.int32)
    tags = jnp.array([[[0.0], [100.0]]])
    loss = means(auxiliary_losses({"tags": tags}, label, jnp.array([[True, False]])))["tags"]
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


def test_semantic_loss_looks_at_sounding_pixels_at_the_middle_of_each_cell():
    label = jnp.zeros((1, 1, 16, 16), jnp.int32).at[0, 0, 4, 12].set(2)  # middle of cell (0, 1)
    logits = jnp.zeros((1, 1, 2, 2, 3)).at[0, 0, 0, 1, 1].set(9.0)  # class 2 is index 1
    losses = means(auxiliary_losses({"semantic": logits}, label, jnp.ones((1, 1), bool)))
    assert losses["semantic"] < 1e-3


def test_no_sounding_pixel_is_no_loss():
    logits = jnp.ones((1, 1, 2, 2, 3))
    label = jnp.zeros((1, 1, 16, 16), jnp.int32)
    losses = means(auxiliary_losses({"semantic": logits}, label, jnp.ones((1, 1), bool)))
    assert losses["semantic"] == 0
