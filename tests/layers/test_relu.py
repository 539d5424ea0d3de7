"""ReLU: the same values in both forms, and what the one of evaluation saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.layers.relu import relu


@pytest.mark.parametrize("train", [True, False])
def test_zero_below_zero_and_nan_stays(train):
    x = jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 2.0, jnp.inf, jnp.nan])
    expected = [0.0, 0.0, 0.0, 0.0, 2.0, np.inf, np.nan]
    np.testing.assert_array_equal(relu(x, train), expected)


@pytest.mark.parametrize("train", [True, False])
def test_type_stays(train):
    assert relu(jnp.ones(3, jnp.bfloat16), train).dtype == jnp.bfloat16


def test_a_residual_chain_keeps_few_maps_in_evaluation():
    def chain(x, kernels):
        for kernel in kernels:
            x = relu(x + x @ kernel, train=False)
        return x

    x, kernels = jnp.zeros((1 << 14, 16)), jnp.zeros((16, 16, 16))
    memory = jax.jit(chain).lower(x, kernels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * x.nbytes  # 16 maps where it is a maximum
