"""A published network as two programs, `see` and `decide`; of a PVTv2, as one a kind of block.

PVTv2-B5 has 52 blocks of four kinds. In one jit every block is traced and compiled by itself, with
gradients for minutes; here each kind is, once. What runs is the model's own code.
"""

import functools

import flax.linen as nn
import jax

from avs_jax.backbones import pvt_v2

MUTABLE = ["batch_stats", "intermediates"]
NO_OPTIONS = {}


@functools.cache
def make_call(**compiler_options):
    @functools.partial(jax.jit, static_argnums=0, compiler_options=compiler_options or None)
    def call_block(block, params, x):
        return jax.checkpoint(block.apply)({"params": params}, x)  # keeps for gradients its inputs

    return call_block


def share_blocks(apart, options):
    """An interceptor of flax, for evaluation; `apart`: blocks whose inside is captured."""
    call_block = make_call(**options)

    def call(function, args, kwargs, context):
        block = context.module
        of_network = isinstance(block, pvt_v2.Block) and block.path  # without: in `call_block`
        if not of_network or block.name in apart:
            return function(*args, **kwargs)
        x, scales = args
        assert scales is None
        return call_block(block.clone(parent=None, name=None), block.variables["params"], x)

    return call


def see(model, variables, frames, *, capture=False, train=False, apart=(), options=NO_OPTIONS):
    """(what was seen, state) by `model.see`: to be called outside of a jit.

    `options`: of XLA's compiler; in a gradient there may be none.
    """
    call = functools.partial(
        model.apply, method="see", train=train, mutable=MUTABLE, capture_intermediates=capture
    )
    if not isinstance(model.backbone, pvt_v2.PVTv2):
        return jax.jit(call, compiler_options=options or None)(variables, frames)
    with nn.intercept_methods(share_blocks(apart, options)):
        return call(variables, frames)


def decide(model, variables, seen, log_mel, *, capture=False, train=False):
    """(outputs, state) by `model.decide`: to be called inside of a jit."""
    return model.apply(
        variables,
        seen,
        log_mel,
        method="decide",
        train=train,
        mutable=MUTABLE,
        capture_intermediates=capture,
    )
