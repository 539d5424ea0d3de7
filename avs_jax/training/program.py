"""A run's training step, from its config: what trains, compiles and plans it makes it here."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import ml_collections
import optax
from jax.sharding import Mesh

from avs_jax.backbones import get_normalization
from avs_jax.devices import give_back_memory
from avs_jax.models import get_loss
from avs_jax.models.forward import init_shapes
from avs_jax.training import freezing, optim, sharding, state
from avs_jax.types import Array, PyTree
from avs_jax.weights.trained import build_model


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config trains on a mesh, and how; nothing of it is computed or compiled yet.

    params: shapes of all parameters. schedule: step -> learning rate. create_state: makes the first
    state. state_shapes: that state's, with their shardings.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    model: nn.Module
    params: PyTree
    frozen: freezing.Frozen
    schedule: Callable[[Array], Array]
    optimizer: optax.GradientTransformation
    collectives: sharding.Collectives
    create_state: Callable[[], state.TrainState]
    state_shapes: state.TrainState

    def make_step(self, size: int) -> Callable:
        """`step(state, batch) -> (state, {name: f32[]})` at which frames are seen at that side."""
        config = self.config
        step = state.make_train_step(
            self.model,
            functools.partial(get_loss(config.model.name), **config.loss.to_dict()),
            self.optimizer,
            self.mesh,
            normalization=get_normalization(config.model.backbone),
            size=size,
            alignment=config.data.alignment,
            seed=config.seed,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            frozen=self.frozen,
            collectives=self.collectives,
        )
        return state.at_precision(step, config.matmul_precision)

    def make_empty_totals(self, step: Callable, batch: PyTree) -> Callable[[], PyTree]:
        """Makes the sums that a loop starts from; of the numbers that `step` gives."""
        names = sharding.name_numbers(step, self.collectives, self.state_shapes, batch)
        return state.make_empty_totals(names, self.mesh)

    def compile_step(
        self, step: Callable, state_: PyTree, totals: PyTree, batch: PyTree
    ) -> Callable:
        """`step` counted and compiled for the mesh's devices, see `sharding.compile_step`."""
        counted = state.count_steps(step)
        compiled = sharding.compile_step(
            counted, self.collectives, self.mesh, state_, totals, batch
        )
        give_back_memory()
        return compiled


def plan_program(
    config: ml_collections.ConfigDict, mesh: Mesh, steps: int, **fields: object
) -> Program:
    """The training program of a config, for a run of so many steps.

    Args:
      fields: of the model, instead of those that this machine's platform chooses.

    Raises:
      BadValueError, UnknownNameError: fields of the config that do not go together.
    """
    collectives = sharding.make_collectives(config)
    # That a step's batch lies on.
    fields["norm_devices"] = mesh.size if collectives.axis is None else 1
    seconds, size = config.data.seconds, config.data.size
    params = init_shapes(build_model(config, **fields), seconds, size)["params"]
    frozen = freezing.find_frozen(params, config.optimizer.freeze, config.model.norm)
    model = build_model(config, frozen=frozen.modules, **fields)
    settings = config.optimizer.to_dict()
    schedule = optim.make_schedule(
        settings.pop("learning_rate"),
        steps,
        warmup_steps=settings.pop("warmup_steps"),
        decay=settings.pop("decay"),
    )
    optimizer = optim.make_optimizer(params, schedule, **settings)
    create_state, state_shapes = state.plan_state(
        model,
        optimizer,
        mesh,
        seconds=seconds,
        size=size,
        seed=config.seed,
        ema_decay=config.ema_decay,
        frozen=frozen,
        sharding_rules=config.sharding_rules,
    )
    return Program(
        config,
        mesh,
        model,
        params,
        frozen,
        schedule,
        optimizer,
        collectives,
        create_state,
        state_shapes,
    )
