"""Equal blocks of a network as one function, which is called rather than written out each time.

PVTv2-B5 has 52 blocks of four kinds. Written out, its forward and backward pass is traced for 15 s
and compiled for 150 on a CPU; as four functions it is traced for 2, and compiled for 26 where XLA
leaves the calls in place (`calls_kept`). Most of those 150 go into finding which operation waits
for which others in the whole of a program. Blocks that XLA schedules apart also keep less at once:
49 instead of 273 MB in evaluation, five frames at 224.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterable, Iterator

import jax
from flax import linen as nn
from jax.experimental.xla_metadata import set_xla_metadata

from avs_jax.types import Array, Float

_KEPT = contextvars.ContextVar("kept", default=False)


@contextlib.contextmanager
def calls_kept(devices: Iterable[jax.Device]) -> Iterator[None]:
    """What is traced in its body calls its blocks as programs of their own, if it is for one CPU:
    what is sharded is for XLA to see as a whole, and accelerators compile otherwise."""
    token = _KEPT.set([device.platform for device in devices] == ["cpu"])
    try:
        yield
    finally:
        _KEPT.reset(token)


def call_block(block: nn.Module, x: Float[Array, "n h w c"], *more) -> Float[Array, "n h w c"]:
    """`block(x, *more)`, for a block that a network's `nn.compact` method has just named.

    block: its state is parameters alone; others of its kind have equal fields. more: arrays, None.
    """
    if block.is_initializing() or block.is_mutable_collection("intermediates"):
        return block(x, *more)
    kind = block.clone(parent=None, name=None)
    with set_xla_metadata(inlineable="false") if _KEPT.get() else contextlib.nullcontext():
        return _apply(kind, block.variables["params"], x, *more)


@functools.partial(jax.jit, static_argnums=0)
def _apply(kind, params, *inputs):
    with set_xla_metadata(inlineable=None):  # of this call, not of those in it
        return kind.apply({"params": params}, *inputs)
