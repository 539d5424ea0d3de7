"""A train step as it is benchmarked, in each of the modes of `config.parallel`."""

import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from avs_jax import devices
from avs_jax.backbones import get_normalization
from avs_jax.benchmarking.flops import count_flops
from avs_jax.benchmarking.messages import count_messages
from avs_jax.benchmarking.variant import Shape
from avs_jax.models import get_loss, get_model
from avs_jax.models.forward import init_shapes
from avs_jax.training import freezing, optim, sharding, state

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
        config = ml_collections.ConfigDict({"parallel": parallel})
        config.model = {"running_statistics": "first"}
        collectives = sharding.make_collectives(config)
        norm_devices = mesh.size if collectives.axis is None else 1
        params = init_shapes(get_model(**fields), shape.seconds, shape.size)["params"]
        frozen = freezing.find_frozen(params, _FREEZE, "global")
        model = get_model(**fields, frozen=frozen.modules, norm_devices=norm_devices)
        schedule = optim.make_schedule(1e-4, 100)
        optimizer = optim.make_optimizer(params, schedule, weight_decay=0.05, freeze=_FREEZE)
        settings = {"size": shape.size, "seed": 0, "frozen": frozen}
        create, shapes = state.plan_state(model, optimizer, mesh, seconds=shape.seconds, **settings)
        step = state.make_train_step(
            model,
            get_loss(fields["name"]),
            optimizer,
            mesh,
            normalization=get_normalization(fields["backbone"]),
            collectives=collectives,
            **settings,
        )
        clips = devices.batch_sharding(mesh)
        batch = state.batch_shapes(*shape, clips)
        names = sharding.name_numbers(step, collectives, shapes, batch)
        self._state, self._totals = create(), state.make_empty_totals(names, mesh)()
        began = time.perf_counter()
        self._step = sharding.compile_step(
            state.count_steps(step), collectives, mesh, self._state, self._totals, batch
        )
        self._compile_seconds = time.perf_counter() - began
        one = jax.vmap(step, in_axes=None, axis_name=collectives.axis, axis_size=1)
        self.flops = count_flops(step if collectives.axis is None else one, shapes, batch)
        self._batch = jax.device_put(_make_batch(batch, fields["num_classes"]), clips)

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


def _make_batch(shapes: dict[str, jax.ShapeDtypeStruct], num_classes: int) -> dict[str, jax.Array]:
    """Noise, half of it background."""
    rng = np.random.default_rng(0)
    batch = {name: jnp.ones(x.shape, x.dtype) for name, x in shapes.items()}
    batch["frames"] = jnp.asarray(rng.integers(0, 256, shapes["frames"].shape, np.uint8))
    batch["waveform"] = jnp.asarray(rng.uniform(-0.5, 0.5, shapes["waveform"].shape), jnp.float32)
    label = rng.integers(0, max(num_classes, 2), shapes["label"].shape)
    label *= rng.integers(0, 2, label.shape)
    return batch | {"label": jnp.asarray(label, jnp.uint8)}
