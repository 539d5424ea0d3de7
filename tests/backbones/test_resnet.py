"""ResNet: torchvision's arithmetic, shapes, modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from avs_jax.backbones import get_backbone
from avs_jax.backbones.resnet import ResidualBlock, max_pool
from avs_jax.convert import to_torch
from tests.parity import fidelity


def picture(n=2, size=64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, size, size, 3)), jnp.float32)


@pytest.mark.slow
def test_resnet50_equals_published_everywhere():
    found = fidelity.differences("resnet50", fidelity.resnet50_entries())
    assert len(found) == 6
    assert {name: d for name, d in found.items() if not d.within} == {}


def torch_resnet18(functional, state, x):
    """ResNet-18 in PyTorch, as torchvision computes it in evaluation -> four maps."""

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def block(x, name, stride):
        y = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = functional.relu(norm(y, f"{name}.bn1"))
        y = norm(functional.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in state:
            x = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
            x = norm(x, f"{name}.downsample.1")
        return functional.relu(x + y)

    x = functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(functional.relu(norm(x, "bn1")), 3, stride=2, padding=1)
    maps = []
    for layer in (1, 2, 3, 4):
        x = block(x, f"layer{layer}.0", 1 if layer == 1 else 2)
        x = block(x, f"layer{layer}.1", 1)
        maps.append(x)
    return maps


def test_resnet18_equals_torchvisions_arithmetic(torch, fill_variables):
    x = picture(2, 72)
    module = get_backbone("resnet18")
    variables = fill_variables(module, x)
    state = {name: torch.tensor(y) for name, y in to_torch("resnet18", variables).items()}
    theirs = torch.tensor(np.moveaxis(np.asarray(x), -1, 1))
    expected = torch_resnet18(torch.nn.functional, state, theirs)
    for ours, theirs in zip(jax.jit(module.apply)(variables, x), expected, strict=True):
        theirs = np.moveaxis(theirs.numpy(), 1, -1)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std() + 1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3), (1, 1, 2, 3)])
def test_max_pool_of_slices_is_that_of_windows(shape):
    x = jnp.float32(np.random.default_rng(0).normal(size=shape))

    def pool_windows(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    def value_and_gradient(pool):
        y, pull = jax.vjp(lambda x: pool(nn.relu(x)), x)
        return y, pull(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))[0]

    ours, windows = value_and_gradient(max_pool), value_and_gradient(pool_windows)
    jax.tree.map(np.testing.assert_array_equal, ours, windows)


def test_max_pool_lets_nan_through():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(np.isnan(max_pool(x))[0, :, :, 0], [[True, False], [False] * 2])


def test_max_pool_pads_with_minus_infinity():
    x = jnp.full((1, 4, 4, 1), -3.0)
    np.testing.assert_array_equal(max_pool(x), np.full((1, 2, 2, 1), -3.0))


def test_stride_sits_on_the_3x3_convolution_of_a_bottleneck(fill_variables):
    block = ResidualBlock(width=8, stride=2, bottleneck=True, zero_init=False, bn_momentum=0.9)
    x = jnp.zeros((1, 8, 8, 16))
    variables = fill_variables(block, x)
    _, state = block.apply(variables, x, capture_intermediates=True)
    inside = state["intermediates"]
    assert inside["conv1"]["__call__"][0].shape == (1, 8, 8, 8)
    assert inside["conv2"]["__call__"][0].shape == (1, 4, 4, 8)
    assert inside["conv3"]["__call__"][0].shape == (1, 4, 4, 32)


@pytest.mark.parametrize("name", ["resnet18", "small_resnet"])
def test_odd_sizes_round_up(name):
    x = jnp.zeros((1, 72, 40, 3))
    maps, _ = jax.eval_shape(get_backbone(name).init_with_output, jax.random.key(0), x)
    assert [y.shape[1:3] for y in maps] == [(18, 10), (9, 5), (5, 3), (3, 2)]


def test_evaluation_uses_running_statistics(fill_variables):
    module, x = get_backbone("small_resnet"), picture(3, 32)
    apply = jax.jit(module.apply)
    variables = fill_variables(module, x)
    for one, many in zip(apply(variables, x[:1]), apply(variables, x), strict=True):
        np.testing.assert_allclose(one[0], many[0], atol=1e-4)


def test_training_moves_running_statistics_by_one_minus_momentum(fill_variables):
    module, x = get_backbone("small_resnet", bn_momentum=0.75), picture()
    variables = fill_variables(module, x)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    _, update = apply(variables, x)
    kernel = variables["params"]["conv1"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    before = variables["batch_stats"]["bn1"]["mean"]
    expected = 0.75 * before + 0.25 * stem.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(update["batch_stats"]["bn1"]["mean"], expected, atol=1e-5)


@pytest.mark.parametrize(("remat", "blocks"), [(False, 0), (True, 4)])
def test_remat_wraps_every_block(remat, blocks):
    module, x = get_backbone("small_resnet", remat=remat), picture(1, 32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        maps, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return sum(jnp.mean(y) for y in maps)

    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], variables["batch_stats"])
    assert str(program).count("= remat2[") == blocks


@pytest.mark.parametrize("bottleneck", [False, True])
def test_zero_init_makes_a_block_start_as_its_shortcut(bottleneck):
    x = jnp.abs(picture(1, 8)[..., :1])
    block = ResidualBlock(width=1, stride=1, bottleneck=bottleneck, zero_init=True, bn_momentum=0.9)
    x = jnp.repeat(x, 4 if bottleneck else 1, axis=-1)
    y, _ = block.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)
