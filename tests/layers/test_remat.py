"""What a policy of rematerialisation keeps."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from avs_jax import errors
from avs_jax.layers.remat import read_remat, rematerialised


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sin(nn.Dense(8)(jnp.cos(nn.Dense(8)(x))))


def kept(remat):
    """{operations that the backward pass computes again}."""
    module, x = rematerialised(Block, remat)(), jnp.ones((2, 8))
    params = module.init(jax.random.key(0), x)
    gradient = jax.value_and_grad(lambda params: module.apply(params, x).sum())
    text = jax.jit(gradient).lower(params).as_text()
    return text.count("dot_general"), text.count("stablehlo.sine")


def test_blocks_computes_all_of_a_block_again():
    assert kept("blocks")[0] > kept("none")[0]


def test_dots_keeps_matrix_products_and_computes_the_rest_again():
    assert kept("dots")[0] == kept("none")[0]
    assert kept("dots")[0] < kept("blocks")[0]


@pytest.mark.parametrize(("old", "new"), [(True, "blocks"), (False, "none")])
def test_old_configs_say_true_or_false(old, new):
    assert read_remat(old) == new


def test_unknown_policy_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="remat 'all'; known: blocks, dots, none"):
        rematerialised(Block, "all")
