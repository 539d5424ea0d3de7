"""A train step as it is benchmarked, in each of the modes of `config.parallel`."""

import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from avs_jax import devices
from avs_jax.benchmarking.flops import count_flops
from avs_jax.benchmarking.messages import count_messages
from avs_jax.benchmarking.variant import Shape
from avs_jax.training import state
from avs_jax.training.program import plan_program
from avs_jax.training.sharding import on_one_device

_FREEZE = ("audio_backbone/.*",)  # as all three papers train


class Step:
    """A train step of a model on noise: AdamW, the sound backbone frozen, all devices."""

    def __init__(self, label: str, fields: dict, shape: Shape, parallel: str):
        """parallel: one of `sharding.MODES`.

        Raises:
          BadValueError: clips that the devices cannot share evenly.
        """
        self.label = f"{label} {parallel}"
        mesh = devices.make_mesh(by_process=parallel == "pmap")
        devices.check_batch_size(shape.clips, mesh)
        program = plan_program(make_config(fields, shape, parallel), mesh, steps=100)
        step, clips = program.make_step(shape.size), devices.batch_sharding(mesh)
        batch = state.batch_shapes(*shape, clips)
        self._state = program.create_state()
        self._totals = program.make_empty_totals(step, batch)()
        began = time.perf_counter()
        self._step = program.compile_step(step, self._state, self._totals, batch)
        self._compile_seconds = time.perf_counter() - began
        one = on_one_device(step, program.collectives)
        self.flops = count_flops(one, program.state_shapes, batch)
        self._batch = jax.device_put(make_batch(batch, fields["num_classes"]), clips)

    def run(self) -> jax.Array:
        """One more step; its state is the next one's."""
        self._state, self._totals, token = self._step(self._state, self._totals, self._batch)
        return token

    def figures(self) -> dict[str, str | float]:
        """All that is not time; memory of each device."""
        memory = self._step.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak = held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        messages = count_messages(self._step.as_text())
        return {
            "step": self.label,
            "gflops": self.flops / 1e9,
            "peak_megabytes": peak / 1e6,
            "collective_megabytes": sum(size for _, size in messages.values()) / 1e6,
            "compile_seconds": self._compile_seconds,
        }


def make_config(fields: dict, shape: Shape, parallel: str) -> ml_collections.ConfigDict:
    """What `avs_jax.train` would read, for a model's fields (those of `models.get_model`)."""
    config = {
        "parallel": parallel,
        "seed": 0,
        "accumulate": 1,
        "ema_decay": None,
        "matmul_precision": None,
        "sharding_rules": (),
        "model": {"norm": "global", "running_statistics": "first"} | fields,
        "loss": {},
        "data": {"seconds": shape.seconds, "size": shape.size, "alignment": "paper"},
        "optimizer": {
            "learning_rate": 1e-4,
            "warmup_steps": 0,
            "decay": "cosine",
            "weight_decay": 0.05,
            "freeze": _FREEZE,
        },
    }
    return ml_collections.ConfigDict(config)


def make_batch(shapes: dict[str, jax.ShapeDtypeStruct], num_classes: int) -> dict[str, jax.Array]:
    """Noise of the shapes of `state.batch_shapes`, half of it background."""
    rng = np.random.default_rng(0)
    batch = {name: jnp.ones(x.shape, x.dtype) for name, x in shapes.items()}
    batch["frames"] = jnp.asarray(rng.integers(0, 256, shapes["frames"].shape, np.uint8))
    batch["waveform"] = jnp.asarray(rng.uniform(-0.5, 0.5, shapes["waveform"].shape), jnp.float32)
    label = rng.integers(0, max(num_classes, 2), shapes["label"].shape)
    label *= rng.integers(0, 2, label.shape)
    return batch | {"label": jnp.asarray(label, jnp.uint8)}
