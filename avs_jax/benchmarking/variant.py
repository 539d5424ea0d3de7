"""A model as it is benchmarked: compiled for noise, with any numbers for weights; and its parts."""

import time
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import devices
from avs_jax.backbones import get_normalization
from avs_jax.benchmarking.flops import count_flops
from avs_jax.layers.shared import calls_kept
from avs_jax.models import get_model
from avs_jax.models.forward import count_params, init_shapes, make_forward, model_inputs
from avs_jax.types import Array, PyTree

BACKBONES = {"backbone": "picture backbone", "audio_backbone": "sound backbone"}
REST = "neck, decoder, head"


class Shape(NamedTuple):
    """Of a batch: clips, frames of each, their side."""

    clips: int
    seconds: int
    size: int


class Part(NamedTuple):
    """A part of a model, alone: what runs it, and how much it computes."""

    name: str
    run: Callable[[], PyTree]
    flops: int


def make_batch(shape: Shape) -> dict[str, Array]:
    """Noise to look at and to hear."""
    b, t, size = shape
    rng = np.random.default_rng(0)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (b, t, size, size, 3), np.uint8)),
        "waveform": jnp.asarray(rng.uniform(-0.5, 0.5, (b, 16_000 * t)), jnp.float32),
        "frame_mask": jnp.ones((b, t), bool),
    }


def _compile(function, *inputs):
    """As programs do that run a network (`prediction.masks.compile_forward`)."""
    with calls_kept(jax.devices()):
        compiled = jax.jit(function).lower(*inputs).compile()
    devices.give_back_memory()
    return compiled


class Variant:
    """A model with weights, compiled for a batch."""

    def __init__(
        self, label: str, fields: dict, shape: Shape, weights: dict[str, PyTree] | None = None
    ):
        """weights: of a variant of the same model, to be used again."""
        self.label, self.shape, self._fields = label, shape, fields
        self._model, self._batch = get_model(**fields), make_batch(shape)
        self._shapes = dict(init_shapes(self._model, shape.seconds, shape.size))
        normalization = get_normalization(fields["backbone"])
        forward = make_forward(self._model, normalization=normalization, size=shape.size)
        began = time.perf_counter()
        self._compiled = _compile(forward, self._shapes, self._batch)
        self._compile_seconds = time.perf_counter() - began
        self.flops = count_flops(forward, self._shapes, self._batch)
        # Any numbers do for timing; initialising for real would take longer than all the rest.
        self.weights = weights or make_weights(self._shapes)

    def run(self) -> Array:
        """Logits of the batch."""
        return self._compiled(self.weights, self._batch)

    def figures(self) -> dict[str, str | int | float]:
        """All that is not time."""
        memory, cost = self._compiled.memory_analysis(), self._compiled.cost_analysis()
        sizes = {k: count_params(v) for k, v in self._shapes["params"].items()}
        picture, sound = sizes.get("backbone", 0), sizes.get("audio_backbone", 0)
        return {
            "model": self.label,
            "batch_size": self.shape.clips,
            "params": sum(sizes.values()),
            "params_backbone": picture,
            "params_audio_backbone": sound,
            "params_head": sum(sizes.values()) - picture - sound,
            "gflops": self.flops / 1e9,
            "gigabytes_touched": cost["bytes accessed"] / 1e9,
            "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
            "argument_megabytes": memory.argument_size_in_bytes / 1e6,
            "compile_seconds": self._compile_seconds,
        }

    def parts(self) -> list[Part]:
        """The two backbones, and all that comes after them, each a program of its own.

        Normalisation and log-mel are in none of them.
        """
        normalization = get_normalization(self._fields["backbone"])
        frames, log_mel = jax.jit(
            lambda batch: model_inputs(
                batch["frames"], batch["waveform"], normalization, frame_mask=batch["frame_mask"]
            )
        )(self._batch)
        calls = {}

        def note(call, inputs, keywords, context):
            name = "/".join(context.module.path)
            given = call(*inputs, **keywords)
            if context.method_name == "__call__" and name in BACKBONES:
                calls[name] = [jax.tree.map(_shape_of, x) for x in (inputs[0], given)]
            return given

        with nn.intercept_methods(note):
            jax.eval_shape(self._model.apply, self._shapes, frames, log_mel)
        found, features = [], {}
        for name, (seen, given) in calls.items():
            features[name] = make_numbers(given)

            def backbone(weights, x, name=name):
                return self._model.apply(weights, x, method=lambda m, x: getattr(m, name)(x))

            found.append(self._part(BACKBONES[name], backbone, make_numbers(seen)))

        def rest(weights, frames, log_mel, features):
            def give(call, inputs, keywords, context):
                name = "/".join(context.module.path)
                if context.method_name == "__call__" and name in features:
                    return features[name]
                return call(*inputs, **keywords)

            with nn.intercept_methods(give):
                return self._model.apply(weights, frames, log_mel)["logits"]

        return [*found, self._part(REST, rest, frames, log_mel, features)]

    def _part(self, name, function, *inputs) -> Part:
        compiled = _compile(function, self._shapes, *inputs)
        flops = count_flops(function, self._shapes, *inputs)
        return Part(name, lambda: compiled(self.weights, *inputs), flops)


def _shape_of(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def make_weights(shapes: PyTree) -> PyTree:
    """Numbers f32 of a size that keeps activations finite."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(_fill(rng, x.shape)), shapes)


def make_numbers(shapes: PyTree) -> PyTree:
    """Normal noise of these shapes and types."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype), shapes
    )


def _fill(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) < 2:
        return np.asarray(0.5 + rng.random(shape, np.float32))
    values = rng.standard_normal(shape, np.float32)
    values /= np.sqrt(np.prod(shape[:-1]), dtype=np.float32)  # in place: VGGish has 50 M in one
    return values


def find_slow(rates: dict[str, float], flops: dict[str, float]) -> dict[str, float]:
    """{part: the others' FLOP/s} of parts that compute at less than a third of the others' rate."""
    slow = {}
    for name, rate in rates.items():
        others = [other for other in rates if other != name]
        seconds = sum(flops[other] / rates[other] for other in others)
        together = sum(flops[other] for other in others) / seconds if seconds else 0.0
        if rate < together / 3:
            slow[name] = together
    return slow
