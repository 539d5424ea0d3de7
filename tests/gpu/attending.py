"""Attention as the models have it today beside cuDNN's fused kernel, in bfloat16."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.benchmarking.timing import time_rounds
from avs_jax.layers.attention import attend
from avs_jax.types import Array
from avs_jax.weights.trained import first_line
from tests.gpu.forms import Attention
from tests.gpu.numbers import compare


def measure(shape: Attention, rounds: int) -> dict:
    """Times and errors of both, forwards and with gradients; errors against float32 by today's way.

    Returns:
      "today_ms", "today_gradient_ms", "today_error", "today_megabytes" (at work, with gradients),
      and the like of "cudnn"; where that cannot do it a "note" says why, in place of its figures.
    """
    arrays, mask = make_inputs(shape)
    ways = {"today": _today(shape, mask), "cudnn": _fused(mask)}
    exact = _numbers(_compile(ways["today"], *arrays, precision="highest")[1], arrays)
    halves = [x.astype(jnp.bfloat16) for x in arrays]
    figures, runs, notes = {}, {}, []
    for name, way in ways.items():
        try:
            forward, gradient = _compile(way, *halves)
            pairs = zip(_numbers(gradient, halves), exact, strict=True)
            errors = [compare(found, expected)[0] for found, expected in pairs]
        except Exception as error:  # no cuDNN, no such head, a mask that it cannot take
            if name == "today":
                raise
            notes.append(f"cuDNN: {first_line(error)}")
            continue
        figures[f"{name}_error"] = max(errors)
        figures[f"{name}_megabytes"] = gradient.memory_analysis().temp_size_in_bytes / 1e6
        query, key, value, _ = halves
        runs[f"{name}_ms"] = functools.partial(forward, query, key, value)
        runs[f"{name}_gradient_ms"] = functools.partial(gradient, *halves)
    times = time_rounds(list(runs.values()), rounds, "attention").wall
    figures |= {name: 1e3 * float(np.median(row)) for name, row in zip(runs, times, strict=True)}
    return figures | ({"note": "; ".join(notes)} if notes else {})


def make_inputs(shape: Attention) -> tuple[list[Array], Array | None]:
    """Query, key, value and the result's cotangent, f32[n . heads d]; the keys' mask bool[n k]."""
    n, q, k, heads, d = shape[:5]
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = ((n, q, heads, d), (n, k, heads, d), (n, k, heads, d), (n, q, heads, d))
    arrays = [jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True)]
    if not shape.masked:
        return arrays, None
    there = jnp.arange(k) < k - jnp.arange(n)[:, None] % 2  # every second lacks its last key
    return arrays, there


def _today(shape: Attention, mask: Array | None) -> Callable:
    if shape.tiled:
        return functools.partial(attend, key_mask=mask)
    return jax.nn.dot_product_attention


def _fused(mask: Array | None) -> Callable:
    # As lengths, for keys that exist come first: as a mask it would be a bias of all weights, which
    # cuDNN takes for even numbers of queries and keys alone when there are gradients (jax 0.10).
    lengths = None if mask is None else mask.sum(-1, dtype=jnp.int32)
    return functools.partial(
        jax.nn.dot_product_attention, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _compile(way: Callable, query, key, value, cotangent, precision: str | None = None):
    """(query, key, value) -> mixed, and with the cotangent -> mixed and three gradients."""

    def gradient(query, key, value, cotangent):
        mixed, back = jax.vjp(lambda *x: way(*x), query, key, value)
        return mixed, *back(cotangent)

    with jax.default_matmul_precision(precision):
        forward = jax.jit(lambda *x: way(*x)).lower(query, key, value).compile()
        return forward, jax.jit(gradient).lower(query, key, value, cotangent).compile()


def _numbers(gradient: Callable, inputs: list[Array]) -> list[np.ndarray]:
    return [np.asarray(x, np.float32) for x in gradient(*inputs)]
