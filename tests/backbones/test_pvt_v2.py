"""PVTv2 against the published network, and what its fields promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.backbones import get_backbone, pvt_v2
from avs_jax.backbones.pvt_v2 import Block, Mlp, draw_scales, gelu
from avs_jax.layers.regime import Regime
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


def test_a_scale_of_a_branch_is_that_of_its_whole_sample(fill_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 16)), jnp.float32)
    block = Block(num_heads=1, mlp_ratio=2, reduction=1)
    variables = fill_variables(block, x)
    # Without the MLP's output there is the attention's branch alone.
    variables["params"]["mlp"]["fc2"] = jax.tree.map(
        np.zeros_like, variables["params"]["mlp"]["fc2"]
    )
    branch = block.apply(variables, x) - x
    scales = jnp.array([[0.0, 1.0, 1.25], [9.0, 9.0, 9.0]])
    scaled = block.apply(variables, x, scales) - x
    np.testing.assert_allclose(scaled, branch * scales[0, :, None, None, None], atol=1e-5)


def test_scales_drop_at_each_block_s_rate_and_keep_the_mean():
    rates = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
    scales = np.asarray(draw_scales(jax.random.key(0), rates, 4000))
    np.testing.assert_allclose((scales == 0).mean((1, 2)), rates, atol=0.02)
    np.testing.assert_allclose(scales[:3].mean((1, 2)), 1, atol=0.03)


def note_scales(monkeypatch, **fields):
    """What a small network draws in training: [rates of its blocks], of each time that it does."""
    drawn = []
    monkeypatch.setattr(
        pvt_v2,
        "draw_scales",
        lambda key, rates, n: drawn.append(rates) or draw_scales(key, rates, n),
    )
    module = get_backbone("pvt_v2_b2", drop_path=0.3, **fields)
    shapes = jax.eval_shape(module.init, jax.random.key(0), picture(1))
    for train in (False, True):
        apply = functools.partial(module.apply, train=train, rngs={"dropout": jax.random.key(0)})
        jax.eval_shape(apply, shapes, picture(1))
    return drawn


def test_drop_path_rises_linearly_over_all_blocks_and_is_off_in_evaluation(monkeypatch):
    (rates,) = note_scales(monkeypatch)
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 16), atol=1e-6)


def test_drop_path_is_off_in_frozen_blocks(monkeypatch):
    (rates,) = note_scales(monkeypatch, regime=Regime(frozen=("block1_1", "block4_2")))
    assert list(np.flatnonzero(rates == 0)) == [0, 1, 15]


def test_nothing_is_dropped_from_a_frozen_network(monkeypatch):
    assert note_scales(monkeypatch, regime=Regime(frozen=("",))) == []


def test_blocks_written_out_say_the_same(fill_variables):
    """As they are where what goes on in them is captured."""
    x = picture(2)
    module = get_backbone("pvt_v2_b0", **SMALL)
    variables = fill_variables(module, x)
    maps, _ = module.apply(variables, x, mutable=["intermediates"])
    for a, b in zip(maps, module.apply(variables, x), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_gelu_and_its_gradient_are_exact():
    x = jnp.linspace(-6, 6, 1001)
    expected = functools.partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), expected(x), atol=2e-6)
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (gelu, expected))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_bfloat16_block_is_close_to_float32(fill_variables):
    x = picture(4, 8, 8)[..., :1] + jnp.arange(16.0) / 8
    block = Block(num_heads=1, mlp_ratio=2, reduction=2)
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
