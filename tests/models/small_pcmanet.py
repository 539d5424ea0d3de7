"""A small PCMANet and its runs, each compiled once for all tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import models

SMALL = {
    "backbone": "small_resnet",
    "audio_backbone": "audio_cnn",
    "dim": 32,
    "num_heads": 4,
    "groups": 4,
    "head_width": 16,
}
CORRECTED = {
    "restore_token_order": True,
    "gradient_through_masked_attention": True,
    "mask_padded_frames": True,
}


def small_inputs(b=1, t=3, height=64, width=64, seed=0):
    rng = np.random.default_rng(seed)
    frames = jnp.float32(rng.normal(size=(b, t, height, width, 3)))
    log_mel = jnp.float32(rng.uniform(-4, 1, (b, t, 96, 64)))
    return frames, log_mel


def sharpen(variables, factor=30.0):
    """Larger logits, so that some tokens are certain and masked."""
    params = dict(variables["params"])
    for k in (1, 2, 3, 4):
        head = dict(params[f"output_conv{k}"])
        head["out"] = {"kernel": head["out"]["kernel"] * factor, "bias": head["out"]["bias"]}
        params[f"output_conv{k}"] = head
    return {**variables, "params": params}


# Compiling is what these tests spend their time on: no optimisation, and each function once.
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def compiled(model, train):
    def call(variables, *inputs):
        mutable = ["batch_stats"] if train else False
        return model.apply(variables, *inputs, train=train, mutable=mutable)

    return jax.jit(call, compiler_options=QUICK)


def apply(model, variables, *inputs):
    """Outputs in evaluation mode."""
    return compiled(model, False)(variables, *inputs)


def train(model, variables, *inputs):
    """Outputs in training mode, new statistics."""
    outputs, new = compiled(model, True)(variables, *inputs)
    return outputs, new["batch_stats"]


def make(fill_variables, seed=0, **fields):
    """A model and its variables, for inputs of any size."""
    return _made(fill_variables, seed, tuple(fields.items()))


@functools.cache
def _made(fill_variables, seed, fields):
    model = models.get_model("pcmanet", **(SMALL | dict(fields)))
    return model, sharpen(fill_variables(model, *small_inputs(t=1), seed=seed))


def padded(value, t=2):
    """Clips of t frames, and the same with two frames of anything behind them, and frame_mask."""
    frames, log_mel = small_inputs(b=2, t=t)
    extra = [jnp.full((2, 2, *x.shape[2:]), value) for x in (frames, log_mel)]
    long = [jnp.concatenate(pair, axis=1) for pair in zip((frames, log_mel), extra, strict=True)]
    mask = jnp.arange(t + 2)[None] < jnp.full((2, 1), t)
    return (frames, log_mel), (*long, mask)
