"""How devices share a training step: where the state lies, and which program they run.

`config.parallel`, one of MODES:

    sharded   one program over the mesh of `avs_jax.devices`, by `jax.jit`: each array of the state
              has a sharding, and all sums are over the global batch. The default.
    pmap      a program per device, by `jax.pmap` over all devices of all hosts: each works on its
              own clips with its own batch statistics, as the replicas of PyTorch's DataParallel and
              DistributedDataParallel. What a loss sums and counts, and the gradients, are summed
              over devices, so that they are those of the global batch; every device then updates
              its own copy of the state alike. Each draws its own dropout.

Both take and give the same global arrays, and so read each other's checkpoints. Evaluation, where
no clip meets another, is the same sharded program in both.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avs_jax import errors
from avs_jax.devices import batch_sharding, replicated
from avs_jax.layers.shared import calls_kept
from avs_jax.training.rules import Rules, apply_rules
from avs_jax.types import Array, PyTree, path_name

MODES = ("sharded", "pmap")

# Smaller arrays are not worth the messages: 2**14 float32 are 64 KiB.
MIN_FSDP_SIZE = 2**14


@dataclasses.dataclass(frozen=True)
class Collectives:
    """What a step asks of the other devices.

    axis: of `jax.pmap`; None: the step sees the global batch, and has nothing to ask.
    running_statistics: one of `layers.regime.RUNNING_STATISTICS`.
    """

    axis: str | None = None
    running_statistics: str = "first"

    def total(self, tree: PyTree) -> PyTree:
        """The sum over all devices, of each array."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)

    def own_key(self, key: Array) -> Array:
        """A random key of this device's own."""
        return key if self.axis is None else jax.random.fold_in(key, jax.lax.axis_index(self.axis))

    def agree(self, batch_stats: PyTree) -> PyTree:
        """The running statistics that all devices go on with, of each one's own."""
        if self.axis is None or not batch_stats:
            return batch_stats
        if self.running_statistics == "mean":
            return jax.lax.pmean(batch_stats, self.axis)
        is_first = jax.lax.axis_index(self.axis) == 0
        return self.total(jax.tree.map(lambda x: jnp.where(is_first, x, 0), batch_stats))


WHOLE_BATCH = Collectives()


def make_collectives(config: ml_collections.ConfigDict) -> Collectives:
    """Of a step in the mode that `config.parallel` says."""
    if config.parallel == "sharded":
        return WHOLE_BATCH
    return Collectives("devices", config.model.running_statistics)


def check_parallel(config: ml_collections.ConfigDict) -> None:
    """Raises UnknownNameError or BadValueError for a mode that there is not, or that cannot do what
    other fields ask for."""
    if config.parallel not in MODES:
        raise errors.unknown_name("parallel", config.parallel, MODES)
    if config.parallel == "pmap" and config.fsdp > 1:
        raise errors.BadValueError(
            f"parallel='pmap' keeps the whole state on every device, fsdp={config.fsdp} a part of "
            "it; use fsdp=1, or parallel='sharded'."
        )
    if config.parallel == "pmap" and len(config.sharding_rules):
        raise errors.BadValueError(
            "parallel='pmap' keeps the whole state on every device: leave out sharding_rules, or "
            "use parallel='sharded'."
        )


def on_one_device(step: Callable, collectives: Collectives) -> Callable:
    """`step` to be traced by itself: else its sums would be over an axis that is not there."""
    if collectives.axis is None:
        return step
    return jax.vmap(step, in_axes=None, axis_name=collectives.axis, axis_size=1)


def name_numbers(
    step: Callable, collectives: Collectives, state: PyTree, batch: PyTree
) -> tuple[str, ...]:
    """Of the numbers that `step(state, batch) -> (state, numbers)` gives; arguments or shapes."""
    return tuple(jax.eval_shape(on_one_device(step, collectives), state, batch)[1])


def compile_step(
    step: Callable,
    collectives: Collectives,
    mesh: Mesh,
    state: PyTree,
    totals: PyTree,
    batch: PyTree,
) -> Callable:
    """`step(state, totals, batch) -> (state, totals, token)` as a program for all devices, with
    `as_text` and `memory_analysis`.

    Args:
      step: see `state.count_steps`; its state and totals are donated.
      state, totals: arrays. batch: shapes f32[b ...] with shardings, b over all devices.
    """
    if collectives.axis is None:
        shardings = jax.tree.map(lambda x: x.sharding, state)
        outputs = (shardings, replicated(mesh), replicated(mesh))
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=outputs)
        with calls_kept(mesh.devices.flat):
            return jitted.lower(state, totals, batch).compile()

    def deal(batch):
        return jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)

    # On each device alone, so that nothing travels: [b ...] and [devices b/devices ...] lie alike.
    deal = jax.jit(deal, out_shardings=batch_sharding(mesh))
    mapped = jax.pmap(
        step,
        collectives.axis,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=tuple(mesh.devices.flat),
        axis_size=mesh.size,
        donate_argnums=(0, 1),
    )
    # Called as it is, it would take and give, on several hosts, arrays of one host; as compiled it
    # takes and gives global ones. There it cannot be lowered from shapes (jax 0.10).
    zeros = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch),
        out_shardings=batch_sharding(mesh),
    )
    return _DealtStep(mapped.lower(state, totals, deal(zeros())).compile(), deal)


@dataclasses.dataclass(frozen=True)
class _DealtStep:
    """A step of `jax.pmap`, compiled, that takes a global batch; as `jax.stages.Compiled`."""

    compiled: jax.stages.Compiled
    deal: Callable

    def __call__(self, state: PyTree, totals: PyTree, batch: PyTree) -> PyTree:
        return self.compiled(state, totals, self.deal(batch))

    def as_text(self) -> str:
        return self.compiled.as_text()

    def memory_analysis(self):
        return self.compiled.memory_analysis()


def state_shardings(shapes: PyTree, params: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """A sharding per array of the state.

    Args:
      shapes: tree of arrays or ShapeDtypeStructs.
      params: the parameters in it.
      rules: `config.sharding_rules`, see `rules.py`: (regex of parameters, axes), `axes` as in
        PartitionSpec, e.g. (None, "fsdp"). Moments and averages lie as their parameter does. Where
        none matches: the largest axis that `fsdp` divides, if the array is large enough to be worth
        it; else a copy everywhere.

    Raises:
      BadValueError: a rule that decides nothing, or axes that do not fit the array or the mesh.
    """
    fsdp = mesh.shape["fsdp"]
    chosen = apply_rules(rules, params, None, "sharding_rules")

    def choose(path, leaf):
        parts = path_name(path).split("/")
        names = ("/".join(parts[i:]) for i in range(len(parts)))
        parameter = next((name for name in names if name in chosen), None)
        if parameter is not None and chosen[parameter] is not None:
            _check(parameter, chosen[parameter], leaf.shape, mesh)
            return NamedSharding(mesh, PartitionSpec(*chosen[parameter]))
        divisible = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible or np.prod(leaf.shape) < MIN_FSDP_SIZE:
            return replicated(mesh)
        axis = max(divisible, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _check(name, axes, shape, mesh):
    """Raises BadValueError where an array of that shape cannot be split so."""
    fits = len(axes) <= len(shape)
    for axis, size in zip(axes, shape, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        known = all(name in mesh.shape for name in names)
        fits &= known and size % np.prod([mesh.shape[n] for n in names], dtype=int) == 0
    if not fits:
        raise errors.BadValueError(
            f"sharding_rules: {tuple(axes)} does not fit {name} of shape {list(shape)}; wanted at "
            f"most one mesh axis ({', '.join(mesh.shape)}) or None per dimension, that divides it."
        )
