"""PVTv2 against the published network, and what its fields promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.backbones import get_backbone
from avs_jax.backbones.pvt_v2 import Block, Mlp
from tests.parity import fidelity

SMALL = {"depths": (1, 1, 1, 1), "widths": (16, 32, 40, 64)}


def picture(n=2, height=64, width=64, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, height, width, 3))
    return jnp.asarray(x, jnp.float32)


@pytest.mark.slow
def test_b5_equals_published_everywhere():
    found = fidelity.differences("pvt_v2_b5", fidelity.pvt_v2_b5_entries())
    assert len(found) == 6
    assert {name: d for name, d in found.items() if not d.within} == {}


def test_both_formulations_of_the_depthwise_convolution_agree(fill_variables):
    x = picture()
    plain = get_backbone("pvt_v2_b0", **SMALL, depthwise="conv")
    taps = get_backbone("pvt_v2_b0", **SMALL, depthwise="taps")
    variables = fill_variables(plain, x)
    expected = jax.jit(plain.apply)(variables, x)
    for a, b in zip(jax.jit(taps.apply)(variables, x), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(b.std()) + 1e-5)


def test_gradients_of_both_formulations_agree(fill_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 8)), jnp.float32)
    variables = fill_variables(Mlp(16), x)

    def gradient(method):
        def loss(variables):
            return jnp.mean(Mlp(16, method).apply(variables, x) ** 2)

        return jax.jit(jax.grad(loss))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient("auto"),
        gradient("conv"),
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_any_multiple_of_32_is_taken(size):
    module = get_backbone("pvt_v2_b0")
    maps, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), picture(1, *size))
    for y, stride, channels in zip(maps, module.strides, module.channels, strict=True):
        assert y.shape == (1, size[0] // stride, size[1] // stride, channels)


def test_other_sizes_are_refused_with_the_next_that_fits():
    with pytest.raises(errors.BadValueError, match="not 100x64; resize them to 128x64"):
        jax.eval_shape(get_backbone("pvt_v2_b0").init, jax.random.key(0), picture(1, 100, 64))


def test_drop_path_drops_whole_samples_and_scales_the_others(fill_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4, 4, 16)), jnp.float32)
    block = Block(num_heads=1, mlp_ratio=2, reduction=1, drop_path=0.25)
    variables = fill_variables(block, x)
    # Without the MLP's output there is the attention's branch alone.
    variables["params"]["mlp"]["fc2"] = jax.tree.map(
        np.zeros_like, variables["params"]["mlp"]["fc2"]
    )
    branch = block.apply(variables, x) - x
    dropped = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)}) - x
    kept = np.any(np.asarray(dropped), axis=(1, 2, 3))
    assert 0.5 < kept.mean() < 0.95
    np.testing.assert_allclose(dropped[kept], branch[kept] / 0.75, atol=1e-5)


def test_drop_path_is_off_in_evaluation(fill_variables):
    x = picture(4, 8, 8)
    block = Block(num_heads=1, mlp_ratio=2, reduction=1, drop_path=0.9)
    variables = fill_variables(block, x)
    np.testing.assert_array_equal(block.apply(variables, x), block.apply(variables, x, False))


def test_drop_path_rises_linearly_over_all_blocks():
    module = get_backbone("pvt_v2_b2", drop_path=0.3)
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates.append(context.module.drop_path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(module.init, jax.random.key(0), picture(1))
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 16), atol=1e-6)


def test_bfloat16_block_is_close_to_float32(fill_variables):
    x = picture(4, 8, 8)[..., :1] + jnp.arange(16.0) / 8
    block = Block(num_heads=1, mlp_ratio=2, reduction=2, drop_path=0.0)
    variables = fill_variables(block, x)
    exact = block.apply(variables, x)
    coarse = block.clone(dtype=jnp.bfloat16).apply(variables, x.astype(jnp.bfloat16))
    assert np.abs(exact - coarse.astype(jnp.float32)).mean() < 0.02 * np.abs(exact).mean()


def gradient_program(x, **fields):
    module = get_backbone("pvt_v2_b0", **SMALL, **fields)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)

    def loss(params):
        maps = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)})
        return sum(jnp.mean(y**3) for y in maps)

    return shapes["params"], jax.grad(loss)


def test_remat_wraps_every_block():
    x = picture(1, 32, 32)
    for remat, blocks in ((False, 0), (True, 4)):
        shapes, gradient = gradient_program(x, remat=remat)
        assert str(jax.make_jaxpr(gradient)(shapes)).count("= remat2[") == blocks


def test_every_parameter_gets_a_gradient(fill_variables):
    x = picture(1)
    _, gradient = gradient_program(x)
    params = fill_variables(get_backbone("pvt_v2_b0", **SMALL), x)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(jax.jit(gradient)(params))
    assert [jax.tree_util.keystr(path) for path, leaf in leaves if not np.any(leaf)] == []
