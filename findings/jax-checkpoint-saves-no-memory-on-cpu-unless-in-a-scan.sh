#!/usr/bin/env bash
# jax 0.10.2 on CPU: `jax.checkpoint` around each of 16 blocks changes neither memory nor FLOPs; in a `scan` it does.
#
# Guess: rematerialised blocks keep their inputs only: a fraction of the memory, about a third more FLOPs, as on GPU and TPU.
# Seen: temporary memory 356.5 MB and 204.3 GFLOP with and without; the same blocks in jax.lax.scan: 634 MB without,
# 111 MB with. So a plan of memory made on a CPU says nothing of what remat gives on an accelerator.
# Source: the recomputation is kept apart by an optimization barrier, which XLA's CPU pipeline removes; then common
# subexpressions are merged and what was to be computed again is kept. A loop's body cannot be merged with another's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import jax
import jax.numpy as jnp

BLOCKS = 16


def block(x, w):
    return x + jnp.tanh(x @ w[0]) @ w[1]


def cost(run, leading):
    w = [jax.ShapeDtypeStruct((*leading, *shape), jnp.float32) for shape in ((256, 1024), (1024, 256))]
    w = tuple(w) if leading else [tuple(w)] * BLOCKS
    x = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    compiled = jax.jit(jax.grad(lambda w, x: (run(w, x) ** 2).sum())).lower(w, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6, compiled.cost_analysis()["flops"] / 1e9


def unrolled(f):
    def run(w, x):
        for weights in w:
            x = f(x, weights)
        return x

    return cost(run, ())


def scanned(f):
    return cost(lambda w, x: jax.lax.scan(lambda x, w: (f(x, w), None), x, w)[0], (BLOCKS,))


plain, remat = unrolled(block), unrolled(jax.checkpoint(block))
print("unrolled: %.1f MB, %.1f GFLOP; with checkpoint: %.1f MB, %.1f GFLOP" % (*plain, *remat))
loop, loop_remat = scanned(block)[0], scanned(jax.checkpoint(block))[0]
print(f"in a scan: {loop:.1f} MB; with checkpoint: {loop_remat:.1f} MB")
assert plain == remat
assert loop_remat < loop / 4
PYTHON
