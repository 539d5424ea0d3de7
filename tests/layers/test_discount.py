"""What speaks against a mask."""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.layers.discount import discount_logits, mark_nothing


def test_discount_makes_sounding_less_probable():
    logits = jnp.array([[[[0.5]]]])
    discount = jnp.array([[[[-2.0]]]])
    assert float(discount_logits(logits, discount)[0, 0, 0, 0]) == -1.5
    classes = discount_logits(jnp.zeros((1, 1, 1, 3)), discount)
    assert jax.nn.softmax(classes)[0, 0, 0, 0] > 0.7


def test_of_classes_the_background_is_what_a_quiet_second_gets():
    marked = jnp.argmax(mark_nothing(jnp.ones((1, 2, 2, 3))), -1)
    assert (marked == 0).all()


def test_where_nothing_is_marked_it_can_still_be_told_where_it_came_nearest():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 1)), jnp.float32)
    quiet = jax.nn.sigmoid(mark_nothing(logits))
    assert float(quiet.max()) < 1e-6
    assert quiet.argmax() == logits.argmax()
