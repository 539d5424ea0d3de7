"""Convolutions: the formulations of each give one result."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.layers.conv import Conv, DepthwiseConv, PatchConv, depthwise_conv


def inputs(kernel_size=3, height=7, width=10, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, height, width, channels))
    kernel = rng.normal(size=(kernel_size, kernel_size, 1, channels))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("method", ["auto", "taps"])
def test_method_equals_plain_convolution(method, kernel_size):
    x, kernel = inputs(kernel_size)
    expected = depthwise_conv(x, kernel, "conv")
    np.testing.assert_allclose(depthwise_conv(x, kernel, method), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "taps", "conv"])
def test_method_is_the_definition(method):
    x, kernel = inputs()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y, row, column, channel = 1, 0, 9, 4  # at a corner
    expected = (
        padded[y, row : row + 3, column : column + 3, channel] * kernel[..., 0, channel]
    ).sum()
    np.testing.assert_allclose(
        depthwise_conv(x, kernel, method)[y, row, column, channel], expected, rtol=1e-5
    )


@pytest.mark.parametrize("kernel_size, height", [(3, 7), (5, 8), (3, 1), (1, 4), (2, 7)])
def test_gradients_of_the_formulations_agree(kernel_size, height):
    x, kernel = inputs(kernel_size, height)

    def gradients(method):
        def loss(x, kernel):
            return jnp.sum(depthwise_conv(x, kernel, method) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

    plain = gradients("conv")
    for method in ("auto", "taps"):
        for a, b in zip(gradients(method), plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_gradients_of_halved_precision_are_summed_in_float32():
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)  # which ends counting by one at 256

    def loss(kernel):
        return depthwise_conv(ones, kernel, "taps").astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.ones((3, 3, 1, 1), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[1, 1, 0, 0]) == 64 * 64


def test_auto_compiles_no_convolution_on_cpu():
    x, kernel = inputs()
    program = jax.jit(lambda x, kernel: depthwise_conv(x, kernel)).lower(x, kernel).compile()
    assert " convolution(" not in program.as_text()


def test_auto_exports_a_convolution_for_accelerators():
    x, kernel = inputs()
    call = jax.jit(lambda x, kernel: depthwise_conv(x, kernel))
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(call, platforms=[platform])(x, kernel)
        assert "convolution" in exported.mlir_module()


def test_module_equals_flax_with_the_same_parameters(fill_variables):
    x, _ = inputs()
    ours = DepthwiseConv()
    flax = nn.Conv(6, (3, 3), feature_group_count=6)
    variables = fill_variables(ours, x)
    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-5)


def test_unknown_method_is_refused():
    with pytest.raises(
        errors.UnknownNameError, match="depthwise method 'fft'; known: auto, conv, taps"
    ):
        depthwise_conv(*inputs(), method="fft")


@pytest.mark.parametrize("size", [(7, 10), (8, 9)])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("method", ["auto", "taps", "conv"])
def test_stride_pads_as_same_does(method, kernel_size, size):
    x, kernel = inputs(kernel_size, *size)
    conv = nn.Conv(6, (kernel_size,) * 2, (2, 2), "SAME", feature_group_count=6, use_bias=False)
    expected = conv.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(depthwise_conv(x, kernel, method, 2), expected, atol=1e-5)


def test_bias_is_left_out_where_asked():
    x, _ = inputs()
    module = DepthwiseConv(5, stride=2, use_bias=False)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert set(variables["params"]) == {"kernel"}


@pytest.mark.parametrize("size, shape", [(2, (2, 8, 6, 3)), (4, (1, 4, 8, 5))])
def test_patches_are_flaxs_strided_convolution(fill_variables, size, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    ours = PatchConv(7, size)
    flax = nn.Conv(7, (size, size), (size, size), padding="VALID")
    variables = fill_variables(flax, x)

    def results(model):
        def loss(variables, x):
            y = model.apply(variables, x)
            return jnp.sum(y**2), y

        gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
        return y, gradients

    for a, b in zip(jax.tree.leaves(results(ours)), jax.tree.leaves(results(flax)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def full_conv(size, stride, side=12, channels=8, width=16, **fields):
    """A function of x and a kernel by `Conv`, the same by XLA, inputs."""
    module = Conv(width, (size, size), (stride, stride), use_bias=False, **fields)
    x = jax.random.normal(jax.random.key(0), (2, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (size, size, channels, width))
    kernel /= size * np.sqrt(channels)
    plain = nn.Conv(width, (size, size), (stride, stride), use_bias=False, **fields)
    functions = [lambda x, k, m=m: m.apply({"params": {"kernel": k}}, x) for m in (module, plain)]
    return *functions, (x, kernel)


@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (7, 4)])
@pytest.mark.parametrize("padding", ["SAME", 1, 0])
def test_full_convolution_and_its_gradients_are_xla_s(size, stride, padding):
    ours, plain, inputs = full_conv(size, stride, padding=padding)

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: (function(*x) ** 2).sum(), argnums=(0, 1)))(*inputs)

    np.testing.assert_allclose(ours(*inputs), plain(*inputs), atol=1e-5)
    for a, b in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("fields", [{"feature_group_count": 4}, {"kernel_dilation": 2}])
def test_groups_and_dilated_kernels_that_see_most_are_left_to_xla(fields):
    ours, plain, inputs = full_conv(3, 1, channels=8, **fields)
    inputs = inputs[0], inputs[1][:, :, : 8 // fields.get("feature_group_count", 1)]
    np.testing.assert_array_equal(ours(*inputs), plain(*inputs))


@pytest.mark.parametrize("far", [(5, 5), (11, 11), (12, 12), (30, 30), (7, 2), (30, 1)])
@pytest.mark.parametrize("padding", ["SAME", "far"])
def test_taps_far_apart_and_their_gradients_are_xla_s(far, padding):
    padding = far if padding == "far" else padding
    ours, plain, inputs = full_conv(3, 1, padding=padding, kernel_dilation=far)
    inputs = inputs[0][:, :11], inputs[1]  # not as high as wide

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: (function(*x) ** 2).sum(), argnums=(0, 1)))(*inputs)

    assert "convolution" not in jax.jit(ours).lower(*inputs).compile().as_text()
    np.testing.assert_allclose(ours(*inputs), plain(*inputs), atol=1e-5)
    for a, b in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_taps_far_apart_are_summed_in_float32():
    ours, _, inputs = full_conv(3, 1, kernel_dilation=6, dtype=jnp.bfloat16)
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in inputs]
    _, plain, _ = full_conv(3, 1, kernel_dilation=6)
    differs = ours(*inputs) != plain(*rounded).astype(jnp.bfloat16)
    assert differs.mean() < 2e-3  # at a border of rounding; summed in bfloat16 every second does


@pytest.mark.parametrize("precision", [None, "default", "high", "highest", "float32"])
def test_products_are_fewer_only_where_no_precision_is_asked_for(precision):
    ours, plain, inputs = full_conv(3, 1, side=28, channels=128, width=128)
    with jax.default_matmul_precision(precision):
        y, expected = ours(*inputs), plain(*inputs)
    exact = precision not in (None, "default")
    assert bool((y == expected).all()) is exact
    assert float(jnp.abs(y - expected).max() / expected.std()) < 3e-5  # see test_winograd
