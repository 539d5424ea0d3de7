"""What training changes, and the pure functions that change it."""

from collections.abc import Callable, Iterable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avs_jax.models.forward import example_inputs, model_inputs
from avs_jax.training.sharding import state_shardings
from avs_jax.types import Array, Int, PyTree, UInt8


@flax.struct.dataclass
class TrainState:
    """step i32[], params and ema (a running average of them, or None), batch_stats, opt_state.

    Fields are trees of whatever jax puts in them: arrays, shapes, shardings.
    """

    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None = None

    def variables(self) -> dict[str, PyTree]:
        """What evaluation applies: the averaged parameters if there are any."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}

    def with_variables(self, variables: dict[str, PyTree]) -> "TrainState":
        """The same state with other weights (arrays of the same shapes), placed as these are."""
        params = place_like(variables["params"], self.params)
        return self.replace(
            params=params,
            batch_stats=place_like(variables["batch_stats"], self.batch_stats),
            ema=None if self.ema is None else jax.tree.map(jnp.copy, params),
        )


def place_like(tree: PyTree, like: PyTree) -> PyTree:
    """Arrays of any kind -> device arrays with the types and shardings of `like`."""

    def place(x, y):
        host = np.asarray(x, y.dtype)
        return jax.make_array_from_callback(host.shape, y.sharding, lambda index: host[index])

    return jax.tree.map(place, tree, like)


def batch_shapes(
    batch_size: int, seconds: int, size: int, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The part of the batch contract that a train step reads, as shapes to compile for."""
    b, t = batch_size, seconds
    shapes = {
        "frames": ((b, t, size, size, 3), jnp.uint8),
        "waveform": ((b, 16_000 * t), jnp.float32),
        "label": ((b, t, size, size), jnp.uint8),
        "label_mask": ((b, t), jnp.bool_),
        "frame_mask": ((b, t), jnp.bool_),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def plan_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seconds: int,
    size: int,
    seed: int,
    ema_decay: float | None = None,
) -> tuple[Callable[[], TrainState], TrainState]:
    """-> function that makes the first state, and that state's shapes with their shardings.

    It is born sharded: no device holds more than its part. A run that goes on never makes it.
    """

    def create() -> TrainState:
        inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(seconds, size)]
        variables = model.init(jax.random.key(seed), *inputs)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            ema=None if ema_decay is None else jax.tree.map(jnp.copy, params),
        )

    shapes = jax.eval_shape(create)
    shardings = state_shardings(shapes, mesh)
    shapes = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return jax.jit(create, out_shardings=shardings), shapes


def resize_label(
    label: UInt8[Array, "b t h w"] | Int[Array, "b t h w"], size: int
) -> Int[Array, "b t out_h out_w"]:
    """i32 by nearest neighbour, as class ids cannot be mixed. Batches carry bytes, to be small."""
    label = label.astype(jnp.int32)
    if label.shape[2:] == (size, size):
        return label
    return jax.image.resize(label, (*label.shape[:2], size, size), "nearest")


def split_batch(x: Array, parts: int, mesh: Mesh) -> Array:
    """[b ...] -> [parts b/parts ...]; a part has every parts-th clip: devices keep theirs."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    spec = PartitionSpec(None, ("data", "fsdp"))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def make_train_step(
    model: nn.Module,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    normalization: tuple,
    size: int,
    seed: int,
    alignment: str = "paper",
    accumulate: int = 1,
    ema_decay: float | None = None,
) -> Callable:
    """`step(state, batch) -> (state, {name: f32[]})`, pure.

    Args:
      loss: `loss(outputs, batch) -> (scalar, {name: scalar})`.
      size: side at which frames are seen; larger or smaller batches are resized on the device.
      alignment: of sound and seconds, see `audio.log_mel`.
      accumulate: the batch is worked through in that many parts, whose gradients are averaged;
        memory falls accordingly. Batch statistics are those of each part in turn.
    """

    def loss_of(params, batch_stats, batch, rng):
        frames, log_mel = model_inputs(
            batch["frames"], batch["waveform"], normalization, size, alignment, batch["frame_mask"]
        )
        outputs, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            frames,
            log_mel,
            batch["frame_mask"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        target = batch | {"label": resize_label(batch["label"], size)}
        total, parts = loss(outputs, target)
        return total, ({"loss": total} | parts, updates.get("batch_stats", {}))

    grad_of = jax.grad(loss_of, has_aux=True)

    def accumulated(state, batch, rng):
        def part(carry, xs):
            grads, batch_stats = carry
            i, batch = xs
            new, (parts, batch_stats) = grad_of(
                state.params, batch_stats, batch, jax.random.fold_in(rng, i)
            )
            grads = jax.tree.map(lambda a, b: a + b / accumulate, grads, new)
            return (grads, batch_stats), parts

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, batch_stats), parts = jax.lax.scan(
            part,
            (zeros, state.batch_stats),
            (
                jnp.arange(accumulate),
                jax.tree.map(lambda x: split_batch(x, accumulate, mesh), batch),
            ),
        )
        return grads, (jax.tree.map(lambda x: x.mean(0), parts), batch_stats)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate == 1:
            grads, (parts, batch_stats) = grad_of(state.params, state.batch_stats, batch, rng)
        else:
            grads, (parts, batch_stats) = accumulated(state, batch, rng)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, ema, params)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return new, parts | {"grad_norm": optax.tree.norm(grads)}

    return step


def count_steps(step: Callable) -> Callable:
    """`step` with running totals: `(state, totals, batch) -> (state, totals, token)`.

    Sums stay on the device, so that the host reads numbers only when it logs them. `bad_step` is
    the first step whose loss or gradient was NaN or infinite, else -1. The token, bool[], is there
    to wait for: state and totals are donated to the next step.
    """

    def counted(state, totals, batch):
        new, parts = step(state, batch)
        finite = jnp.isfinite(parts["loss"]) & jnp.isfinite(parts["grad_norm"])
        first_bad = (totals["bad_step"] < 0) & ~finite
        totals = {
            "sums": {name: totals["sums"][name] + value for name, value in parts.items()},
            "count": totals["count"] + 1,
            "bad_step": jnp.where(first_bad, new.step, totals["bad_step"]),
        }
        return new, totals, finite

    return counted


def make_empty_totals(names: Iterable[str], mesh: Mesh) -> Callable[[], PyTree]:
    """-> function that gives totals of no step, on every device of `mesh`; compiled once."""
    names = tuple(names)

    def create():
        return {
            "sums": {name: jnp.zeros((), jnp.float32) for name in names},
            "count": jnp.zeros((), jnp.int32),
            "bad_step": jnp.full((), -1, jnp.int32),
        }

    # Under jit, so that on several hosts no array has to be compared between them.
    return jax.jit(create, out_shardings=NamedSharding(mesh, PartitionSpec()))
