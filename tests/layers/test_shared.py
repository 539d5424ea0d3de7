"""Blocks that are called: one function a kind, and programs of their own on one CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.layers.shared import call_block, calls_kept


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, scale=None):
        y = nn.Dense(self.width)(jnp.sin(x))
        return x + (y if scale is None else y * scale)


class Network(nn.Module):
    called: bool

    @nn.compact
    def __call__(self, x, scale=None):
        for i in range(3):
            block = Block(x.shape[-1], name=f"block{i}")
            x = call_block(block, x, scale) if self.called else block(x, scale)
        return x


X = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
VARIABLES = Network(True).init(jax.random.key(1), X)


def loss(called, scale=None):
    return lambda variables: (Network(called).apply(variables, X, scale) ** 2).sum()


@pytest.mark.parametrize("scale", [None, jnp.float32(0.5)])
def test_called_blocks_say_what_blocks_say_and_so_do_their_gradients(scale):
    with calls_kept(jax.devices()[:1]):
        values = jax.jit(jax.value_and_grad(loss(True, scale)))(VARIABLES)
    expected = jax.value_and_grad(loss(False, scale))(VARIABLES)
    for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_parameters_are_those_of_blocks_written_out():
    expected = Network(False).init(jax.random.key(1), X)
    jax.tree.map(np.testing.assert_array_equal, VARIABLES, expected)


def test_blocks_of_a_kind_are_one_function():
    text = jax.jit(loss(True)).lower(VARIABLES).as_text()
    assert text.count("func.func private @_apply") == 1 and text.count("call @_apply") == 3


@pytest.mark.parametrize("count, calls", [(1, 6), (2, 0)])
def test_calls_are_kept_for_one_cpu_alone(count, calls):
    with calls_kept(jax.devices()[:count]):
        compiled = jax.jit(jax.grad(loss(True))).lower(VARIABLES).compile()
    assert compiled.as_text().count(" call(") == calls  # forwards, and back


def test_what_a_block_takes_note_of_is_found():
    _, state = Network(True).apply(
        VARIABLES, X, capture_intermediates=True, mutable=["intermediates"]
    )
    assert sorted(state["intermediates"]) == ["__call__", "block0", "block1", "block2"]
