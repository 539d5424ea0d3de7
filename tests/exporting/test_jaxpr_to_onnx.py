"""Functions of jax as ONNX: the same numbers, one operator after the other, or a refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from avs_jax import errors
from avs_jax.layers.conv import depthwise_conv

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
DEPTHWISE = RNG.normal(size=(3, 3, 1, 4)).astype(np.float32)
MATRIX = RNG.normal(size=(4, 7)).astype(np.float32)
ROWS = RNG.normal(size=(5, 3)).astype(np.float32)
COLUMNS = np.array([2, 0, 3, 3], np.int32)
NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel=KERNEL, padding=((1, 2), (0, 1)), strides=(1, 1), **others):
    return lax.conv_general_dilated(
        x, jnp.asarray(kernel), strides, padding, dimension_numbers=NHWC, **others
    )


def pool(x, size=(1, 3, 3, 1), strides=(1, 2, 2, 1), padding=((0, 0), (1, 1), (0, 1), (0, 0))):
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, padding)


def layers(x):
    """Axes in all orders: a convolution, tokens, their attention, a map again."""
    y = jax.nn.relu(conv(x))
    mean = y.mean((1, 2), keepdims=True)
    y = (y - mean) * lax.rsqrt(((y - mean) ** 2).mean((1, 2), keepdims=True) + 1e-5)
    tokens = y.reshape(2, -1, 2, 3)
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", tokens, tokens), axis=-1)
    y = jnp.einsum("nhqk,nkhd->nqhd", weights, tokens).reshape(y.shape)
    return jnp.concatenate([y, jax.image.resize(x, (*y.shape[:3], 4), "bilinear")], -1)


def take_largest(x):
    index = jnp.argmax(x.sum((1, 2)), axis=-1)
    return jnp.take_along_axis(x, index[:, None, None, None], axis=3)


def running(x):
    def step(total, row):
        total = total + row * x[0, 0, 0, 0]
        return total, total.max()

    return lax.scan(step, jnp.zeros(x.shape[1:]), x, reverse=True)[1]


# What is done to x f32[2 5 6 4], by the operator that it is about.
FUNCTIONS = {
    "layers": layers,
    "convolution, padding of both sides": conv,
    "convolution, strides": lambda x: conv(x, strides=(2, 3)),
    "convolution, dilated": lambda x: conv(x, rhs_dilation=(2, 1), padding=((2, 2), (1, 1))),
    "convolution, depthwise": lambda x: conv(x, DEPTHWISE, feature_group_count=4),
    "convolution, depthwise by platform": lambda x: depthwise_conv(x, jnp.asarray(DEPTHWISE)),
    "convolution, unknown kernel": lambda x: conv(x, KERNEL * x[0, 0, 0, 0]),
    "convolutions in a row": lambda x: conv(jnp.where(conv(x) <= 0, 0, conv(x))[..., :4] + 1),
    "pooling, padding of one side": pool,
    "pooling, along one axis": lambda x: pool(x, (1, 2, 1, 1), (1, 1, 1, 1), ((0, 0),) * 4),
    "resizing up, bilinear": lambda x: jax.image.resize(x, (2, 9, 13, 4), "bilinear"),
    "resizing down, antialiased": lambda x: jax.image.resize(x, (2, 3, 4, 4), "linear"),
    "resizing, nearest": lambda x: x[:, jnp.arange(9) * 5 // 9][:, :, jnp.arange(4) * 6 // 4],
    "resizing a map of a convolution": lambda x: jax.image.resize(conv(x), (2, 9, 13, 6), "cubic"),
    "product, matrix": lambda x: x @ MATRIX,
    "product, matrix from the left": lambda x: jnp.einsum("ck,nhwc->knhw", MATRIX, x),
    "product, an axis inside": lambda x: jnp.einsum("hk,nhwc->nkwc", ROWS, x),
    "product, batched": lambda x: jnp.einsum("nhwc,nvhc->nchwv", x, x.swapaxes(1, 2)),
    "product, a known vector for each row": lambda x: jnp.einsum(
        "nhwc,hc->nhw", x, ROWS @ MATRIX[:3, :4]
    ),
    "product, over two axes": lambda x: jnp.einsum("nhwc,mhwc->nm", x, x + 1),
    "product, outer": lambda x: jnp.einsum("h,w->hw", x[0, :, 0, 0], x[0, 0, :, 0]),
    "softmax": lambda x: jax.nn.softmax(x, axis=1),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "layer norm": lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3),
    "repeat": lambda x: jnp.repeat(x[:, :1], 3, axis=1),
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 3)),
    "broadcast and reshaped": lambda x: jnp.broadcast_to(x[:, :1], (2, 5, 6, 4)).reshape(10, 24),
    "broadcast and summed": lambda x: jnp.broadcast_to(x[:, :1], (2, 5, 6, 4)).sum((1, 3)),
    "broadcast and cut": lambda x: jnp.broadcast_to(x[:, :1], (2, 5, 6, 4))[:, 1:3, ::2],
    "broadcast and padded": lambda x: jnp.pad(jnp.broadcast_to(x[:, :1], (2, 5, 6, 4)), 1),
    "broadcast to new axes": lambda x: jnp.broadcast_to(x[:, :, :, None], (3, 2, 5, 6, 2, 4)),
    "reshaped map": lambda x: conv(x).reshape(1, 2, 6, -1, 3, 2).max(axis=3),
    "transposed and reshaped": lambda x: conv(x).transpose(3, 1, 0, 2).reshape(6, 1, -1, 5),
    "flipped": lambda x: jnp.flip(conv(x), (1, 3)),
    "padded": lambda x: jnp.pad(conv(x), ((0, 1), (2, 0), (0, 0), (1, 1)), constant_values=2.0),
    "cut with steps": lambda x: conv(x)[:, 1::2, ::3, 2:5],
    "joined": lambda x: jnp.concatenate([conv(x)[..., :4], jnp.ones((2, 6, 5, 1))], axis=3),
    "stacked": lambda x: jnp.stack([conv(x)[..., 0], conv(x)[..., 1], jnp.ones((2, 6, 5))], axis=1),
    "split": lambda x: jnp.split(conv(x), 3, axis=3)[1],
    "columns": lambda x: x[:, COLUMNS, :, :].sum(2),
    "largest": take_largest,
    "smallest of each": lambda x: jnp.argmin(x, axis=2),
    "outside, filled": lambda x: jnp.take(x[0, 0, 0], (x[0, :, 0, 0] * 9).astype(int), mode="fill"),
    "outside, at the edge": lambda x: jnp.take(
        x[0, 0, 0], (x[0, :, 0, 0] * 9).astype(int), mode="clip"
    ),
    "mapped": lambda x: lax.map(jax.checkpoint(lambda row: row @ row.T), x[:, 0]),
    "scanned backwards": running,
    "unstacked": lambda x: jnp.stack(list(jnp.unstack(x, axis=1))[::-1], axis=-1),
    "softplus": lambda x: jax.nn.softplus(10 * x),
    "logarithms and powers": lambda x: jnp.log(jnp.abs(x) + 0.01) + x**3 + jnp.abs(x) ** 0.3,
    "trigonometry": lambda x: jnp.sin(x) * jnp.cos(3 * x) + jnp.tanh(x) + jax.nn.sigmoid(x),
    "rounding": lambda x: jnp.round(x * 2) / 2 + jnp.floor(x) - jnp.ceil(x * 3),
    "clipped": lambda x: jnp.clip(x, -0.3, 0.4) + jnp.minimum(x, 0.1) + jnp.maximum(x, 0),
    "signs and rests": lambda x: jnp.sign(x) * jnp.mod(x, 0.3) + lax.rem(x, 0.7) - lax.neg(x),
    "comparisons": lambda x: (x > 0) & ~(x >= 1) | (x == 0) ^ (x != 2) & (x <= 3) & (x < 2),
    "all and any": lambda x: (x > 0).any((1, 2)) | (x < 2).all((1, 2)),
    "whole numbers": lambda x: ((x * 100).astype(int) // 7) % 5 - (abs(x) * 10).astype(np.uint8),
    "root": lambda x: jnp.sqrt(jnp.abs(x)) + lax.rsqrt(jnp.abs(x) + 0.1) + jnp.exp(x),
    "known": lambda x: jnp.arange(24.0).reshape(4, 6),
    "as it is": lambda x: x,
}


def run(onnx, function, *arrays, **options):
    """The function's results by ONNX Runtime."""
    from avs_jax.exporting import jaxpr_to_onnx

    names = "xyz"[: len(arrays)]
    inputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in zip(names, arrays, strict=True)
    }
    model = jaxpr_to_onnx.write(lambda *values: (function(*values),), inputs, ["found"], **options)
    library, runtime = onnx
    library.checker.check_model(model, full_check=True)
    session = runtime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, dict(zip(names, arrays, strict=True)))
    return found, model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_numbers_are_those_of_jax(onnx, name):
    x = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
    found, _ = run(onnx, FUNCTIONS[name], x)
    expected = np.asarray(jax.jit(FUNCTIONS[name])(x))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_nothing_is_transposed_between_convolutions(onnx):
    def network(x):
        y = pool(jax.nn.relu(conv(x) * KERNEL[0, 0, 0] - KERNEL[0, 1, 0]))
        return conv(y[..., :4] + y[..., 2:]).mean((1, 2))

    _, model = run(onnx, network, np.ones((2, 8, 8, 4), np.float32))
    found = kinds(model)
    assert found.count("Transpose") == 1  # of the input
    assert "Expand" not in found and found.count("Conv") == 2


def test_relu_is_one_operator_however_it_is_written_and_lets_nan_through(onnx):
    x = np.array([-1.0, 0.0, 2.0, np.nan], np.float32)
    for function in (jax.nn.relu, lambda x: jnp.where(x <= 0, jnp.zeros_like(x), x)):
        found, model = run(onnx, function, x)
        assert kinds(model) == ["Relu", "Identity"]
        np.testing.assert_array_equal(found, [0, 0, 2, np.nan])


def test_clipping_is_one_operator_whichever_way_round_and_lets_nan_through(onnx):
    x = np.array([-1.0, 0.5, 9.0, np.nan], np.float32)
    for function in (jax.nn.relu6, lambda x: jnp.clip(x, 0, 6)):
        found, model = run(onnx, function, x)
        assert kinds(model) == ["Clip", "Identity"]
        np.testing.assert_array_equal(found, [0, 0.5, 6, np.nan])


def test_clipping_by_what_is_not_known_is_no_clip(onnx):
    x, y = RNG.normal(size=(2, 8)).astype(np.float32)
    for function in (
        lambda x, y: jnp.minimum(jnp.maximum(x, y), 0.1),
        lambda x, y: jnp.minimum(jnp.maximum(x, 0.1), y),
        lambda x, y: jnp.minimum(jnp.maximum(x, 0.1), jnp.arange(8.0) / 8),
    ):
        found, _ = run(onnx, function, x, y)
        np.testing.assert_array_equal(found, function(x, y))


def test_nodes_are_named_by_their_modules_inside_jit_and_branches_too(onnx):
    def function(x):
        with jax.named_scope("backbone"):
            return jax.jit(depthwise_conv)(x, jnp.asarray(DEPTHWISE)) + 1

    _, model = run(onnx, function, np.ones((2, 5, 6, 4), np.float32))
    (convolution,) = (x.name for x in model.graph.node if x.op_type == "Conv")
    assert convolution.startswith("backbone/") and convolution.split("/")[-1].startswith("Conv_")


def test_another_choice_by_sign_is_no_relu(onnx):
    x, y = RNG.normal(size=(2, 8)).astype(np.float32)
    for function in (lambda x, y: jnp.where(x <= 0, 0, y), lambda x, y: jnp.where(x <= 1, 0, x)):
        found, _ = run(onnx, function, x, y)
        np.testing.assert_array_equal(found, function(x, y))


def test_what_repeats_itself_takes_no_room(onnx):
    def function(x):
        return jnp.where(x > 1, x + jnp.tile(jnp.arange(4.0), (64, 64, 1)), jnp.zeros((64, 64, 4)))

    _, model = run(onnx, function, np.ones((64, 64, 4), np.float32))
    assert model.ByteSize() < 1000


def test_weights_that_float16_holds_are_kept_in_it(onnx):
    exact = np.round(MATRIX * 64) / 64
    x = np.ones((3, 4), np.float32)
    found, small = run(onnx, lambda x: x @ exact, x, half=True)
    np.testing.assert_array_equal(found, x @ exact)
    _, same = run(onnx, lambda x: x @ MATRIX, x, half=True)
    assert small.ByteSize() < same.ByteSize()


def transposed_conv(x):
    return conv(x, lhs_dilation=(2, 2))


def named(x):
    with jax.named_scope("head"):
        return jnp.cumsum(x, axis=1)


REFUSED = {
    r"cumsum \(not in the tables\) in head cannot be written": named,
    r"conv_general_dilated \(lhs_dilation": transposed_conv,
    r"exp \(accuracy\)": lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST),
    r"pad \(padding between elements\)": lambda x: lax.pad(x, 0.0, [(0, 0, 1)] * 4),
    r"gather \(more than one element of an axis\)": lambda x: jax.vmap(
        lambda row, i: lax.dynamic_slice(row, (i,), (2,))
    )(x[0, 0], (x[0, 0, :, 0] * 2).astype(int)),
    r"reduce_window_max \(base_dilation\)": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", base_dilation=(1, 2, 1, 1)
    ),
    r"while \(not in the tables\)": lambda x: lax.while_loop(lambda x: x.sum() < 9, jnp.exp, x),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_is_not_known_is_refused_by_name(onnx, told):
    with pytest.raises(errors.BadValueError, match=told):
        run(onnx, REFUSED[told], np.ones((2, 5, 6, 4), np.float32))
