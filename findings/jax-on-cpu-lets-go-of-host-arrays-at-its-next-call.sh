#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a NumPy array that was put on a device is let go of at JAX's next call, not when the
# device's array is deleted.
#
# Guess: `del` of the last reference to a jax.Array frees what it was made of.
# Seen: on a CPU device_put does not copy what is aligned to 64 bytes. A buffer may end in a thread that must
#   not touch Python objects, so its reference to the array waits in a list until another call of JAX, or
#   gc.collect(). At the end of a process nobody makes that call, and finalisers do not run: shared memory of
#   grain's workers is not unlinked ("resource_tracker: There appear to be 5 leaked shared_memory objects").
# Source: jaxlib's GlobalPyRefManager; jax/_src/lib/__init__.py, _xla_gc_callback.
# So: what has to be given back in time is copied first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import gc, mmap, weakref
import jax
import numpy as np

step = jax.jit(lambda x: x.sum())
late = 0
for _ in range(20):
    host = np.frombuffer(mmap.mmap(-1, 4 << 20), np.float32)  # aligned: JAX does not copy it
    seen = weakref.ref(host)
    device = jax.device_put(host)
    step(device).block_until_ready()
    del host, device
    late += seen() is not None
    gc.collect()
    assert seen() is None
print(f"of 20 arrays {late} outlived the last reference to them")
assert late
PYTHON
