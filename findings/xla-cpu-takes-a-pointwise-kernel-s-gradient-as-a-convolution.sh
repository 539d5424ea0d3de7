#!/usr/bin/env bash
# On CPU XLA runs a 1x1 convolution as the matrix product that it is, but not the gradient of its kernel:
# that becomes a convolution with a window as large as the map, for which both maps are laid out anew.
#
# jax 0.10.2 (and 0.12.0.1), Linux, x86-64, CPython 3.11.
# Guess: as the forward pass is a product, so are its gradients; writing x @ w instead changes nothing.
# Seen: 5 x 56 x 56, 256 to 128 channels, one thread: forward 15 ms as a convolution, 12 as a product; the
#   kernel's gradient 140 ms as a convolution, 14 as a product, of the same numbers. With 64 to 256: 71, 5.
# Source: jax/_src/lax/convolution.py, _conv_general_dilated_transpose_rhs swaps batch and features, so that
#   the window is the map; jax.readthedocs.io on lax.conv_general_dilated says nothing of its cost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np

shape, width = (5, 56, 56, 256), 128
x = jax.random.normal(jax.random.key(0), shape)
w = jax.random.normal(jax.random.key(1), (shape[-1], width))
dy = jax.random.normal(jax.random.key(2), (*shape[:-1], width))


def convolution(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w[None, None], (1, 1), "VALID", dimension_numbers=numbers)


def product(x, w):
    return jnp.dot(x.reshape(-1, shape[-1]), w).reshape(dy.shape)


def gradient(function):
    return jax.jit(lambda x, w, dy: jax.vjp(function, x, w)[1](dy)[1])


def processor_seconds(function, *inputs):
    jax.block_until_ready(function(*inputs))
    seconds = []
    for _ in range(7):
        began = time.process_time()
        jax.block_until_ready(function(*inputs))
        seconds.append(time.process_time() - began)
    return min(seconds)


forward = [processor_seconds(jax.jit(f), x, w) for f in (convolution, product)]
backward = [processor_seconds(gradient(f), x, w, dy) for f in (convolution, product)]
a, b = (np.asarray(gradient(f)(x, w, dy)) for f in (convolution, product))
print(f"jax {jax.__version__}, CPU ms as a convolution and as a product:", end=" ")
print(f"forward {1e3 * forward[0]:.0f}, {1e3 * forward[1]:.0f};", end=" ")
print(f"kernel's gradient {1e3 * backward[0]:.0f}, {1e3 * backward[1]:.0f}")
np.testing.assert_allclose(a, b, atol=1e-4 * a.std())
assert forward[0] < 3 * forward[1], "the forward pass is no product any more"
assert backward[0] > 3 * backward[1], "this has changed"
PYTHON
