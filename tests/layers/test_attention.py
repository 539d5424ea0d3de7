"""Attention by tiles of queries; the heads' plumbing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.layers.attention import MultiHeadAttention, attend

N, Q, K, HEADS, DIM = 2, 11, 7, 2, 4


def make_inputs(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (N, Q, HEADS, DIM), (N, K, HEADS, DIM), (N, K, HEADS, DIM)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def make_mask():
    return jnp.arange(K) < jnp.array([[K], [3]])


def plain(query, key, value, mask):
    """By the formula, in numpy."""
    scores = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(DIM)
    scores = np.where(np.asarray(mask)[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhqk,nkhd->nqhd", weights, value)


# Tiles of all queries, of 11 = 4 + 4 + 3, of one.
@pytest.mark.parametrize("max_weights", [2**20, 4 * HEADS * K, HEADS * K])
def test_tiles_equal_the_formula(max_weights):
    inputs, mask = make_inputs(), make_mask()
    mixed = attend(*inputs, mask, max_weights=max_weights)
    np.testing.assert_allclose(mixed, plain(*inputs, mask), rtol=1e-4, atol=1e-5)


def test_gradients_do_not_depend_on_tiles():
    inputs, mask = make_inputs(), make_mask()

    def gradient(max_weights):
        def total(*inputs):
            return jnp.sin(attend(*inputs, mask, max_weights=max_weights)).sum()

        return jax.grad(total, argnums=(0, 1, 2))(*inputs)

    for one, other in zip(gradient(2**20), gradient(4 * HEADS * K), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def temporary_bytes(max_weights, gradient):
    shape = jax.ShapeDtypeStruct((1, 512, 2, 8), jnp.float32)

    def total(*inputs):
        return attend(*inputs, max_weights=max_weights).sum()

    function = jax.grad(total, argnums=(0, 1, 2)) if gradient else total
    return (
        jax.jit(function).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes
    )


@pytest.mark.parametrize("gradient", [False, True])
def test_weights_never_exist_at_once(gradient):
    weights = 2 * 512 * 512 * 4
    assert temporary_bytes(2**30, gradient) >= weights
    assert temporary_bytes(2 * 512 * 16, gradient) < weights / 4


def test_keys_out_of_the_mask_have_no_influence():
    (query, key, value), mask = make_inputs(), make_mask()
    other = jnp.where(mask[..., None, None], value, 100.0)
    np.testing.assert_array_equal(attend(query, key, value, mask), attend(query, key, other, mask))


def test_heads_split_the_width():
    with pytest.raises(ValueError, match="width 6 is not a multiple of num_heads=4"):
        x = jnp.zeros((1, 2, 6))
        MultiHeadAttention(4).init(jax.random.key(0), x, x, x)


def test_projections_take_the_width_of_the_query():
    x, y, z = jnp.zeros((1, 2, 6)), jnp.zeros((1, 3, 5)), jnp.zeros((1, 3, 4))
    mixed, variables = MultiHeadAttention(3).init_with_output(jax.random.key(0), x, y, z)
    assert mixed.shape == (1, 2, 6)
    assert {name: p["kernel"].shape for name, p in variables["params"].items()} == {
        "query": (6, 6),
        "key": (5, 6),
        "value": (4, 6),
        "out": (6, 6),
    }


@pytest.mark.parametrize("max_weights", [2**20, 4 * HEADS * K])
def test_float64_is_kept(max_weights):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        query, key = (jnp.asarray(rng.normal(size=(2, s, HEADS, 4))) for s in (9, K))
        mixed = attend(query, key, key, max_weights=max_weights)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) / 2)
        expected = jnp.einsum("nhqk,nkhd->nqhd", weights, key)
        assert mixed.dtype == expected.dtype == jnp.float64
        np.testing.assert_allclose(mixed, expected, atol=1e-12)
