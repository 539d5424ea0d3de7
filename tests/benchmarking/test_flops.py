"""FLOPs beside XLA's count where that is right, and in loops, where it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import models
from avs_jax.benchmarking.flops import count_flops
from avs_jax.layers.attention import attend
from avs_jax.models.forward import example_inputs, init_shapes


def told_by_xla(function, *inputs):
    return jax.jit(function).lower(*inputs).cost_analysis()["flops"]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 4)])
def test_convolution_is_what_xla_counts(padding, stride, dilation, groups):
    x, kernel = jnp.zeros((2, 11, 9, 8)), jnp.zeros((3, 3, 8 // groups, 16))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert count_flops(convolve, x, kernel) == told_by_xla(convolve, x, kernel)


def test_gradients_of_a_convolution_cost_as_much_as_itself_each():
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 8))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=numbers)

    def gradient(x, kernel):
        return jax.grad(lambda *y: convolve(*y).sum(), argnums=(0, 1))(x, kernel)

    once = count_flops(convolve, x, kernel)
    # The forward pass is traced too, and thrown away when compiled.
    assert count_flops(gradient, x, kernel) == 3 * once


def test_a_loop_counts_as_often_as_it_runs():
    x = jnp.zeros((10, 16, 16))
    one = count_flops(lambda x: x[0] @ x[0], x)
    assert count_flops(lambda x: jax.lax.map(lambda y: y @ y, x), x) == 10 * one == 10 * 2 * 16**3


def test_of_branches_the_dearest_counts():
    x = jnp.zeros((16, 16))
    branches = [lambda x: x, lambda x: x @ x @ x]
    assert count_flops(lambda i, x: jax.lax.switch(i, branches, x), 0, x) == 2 * 2 * 16**3


def test_attention_by_tiles_counts_as_the_whole():
    q, k = jnp.zeros((1, 40, 2, 8)), jnp.zeros((1, 24, 2, 8))
    whole = count_flops(lambda q, k: attend(q, k, k), q, k)
    assert count_flops(lambda q, k: attend(q, k, k, max_weights=2 * 24 * 8), q, k) == whole


@functools.cache
def flops_of(name, size):
    model = models.get_model(name)
    shapes = init_shapes(model, 5, size)
    return count_flops(lambda v, *x: model.apply(v, *x)["logits"], shapes, *example_inputs(5, size))


def test_the_real_time_model_computes_half_as_much():
    assert flops_of("avesformer", 224) < 0.5 * flops_of("pcmanet", 224)


def test_the_real_time_model_costs_in_proportion_to_pixels():
    small, large = (flops_of("avesformer", size) for size in (224, 448))
    assert np.log(large / small) / np.log(4) < 1.05
