"""What training changes, and the pure functions that change it."""

import functools
from collections.abc import Callable, Iterable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avs_jax.devices import gather, replicated
from avs_jax.layers import losses
from avs_jax.models.forward import example_inputs, model_inputs
from avs_jax.training import freezing, remembered
from avs_jax.training.freezing import NOTHING, Frozen
from avs_jax.training.rules import Rules
from avs_jax.training.sharding import WHOLE_BATCH, Collectives, state_shardings
from avs_jax.types import Array, Int, PyTree, UInt8


@flax.struct.dataclass
class TrainState:
    """step i32[], params, batch_stats, opt_state, ema.

    ema: running averages {"params", "batch_stats"} of what learns and of the statistics that follow
    it, or None. opt_state is of what learns alone, too. Fields are trees of whatever jax puts in
    them: arrays, shapes, shardings.
    """

    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None = None

    def variables(self) -> dict[str, PyTree]:
        """What evaluation applies: averages where there are any."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        if self.ema is None:
            return variables
        return {name: freezing.overlay(x, self.ema[name]) for name, x in variables.items()}

    def with_variables(self, variables: dict[str, PyTree]) -> "TrainState":
        """The same state with other weights (arrays of the same shapes), placed as these are."""
        params = place_like(variables["params"], self.params)
        batch_stats = place_like(variables["batch_stats"], self.batch_stats)
        ema = None
        if self.ema is not None:
            ema = {
                "params": freezing.pick(params, self.ema["params"]),
                "batch_stats": freezing.pick(batch_stats, self.ema["batch_stats"]),
            }
            ema = jax.tree.map(jnp.copy, ema)
        return self.replace(params=params, batch_stats=batch_stats, ema=ema)


def place_like(tree: PyTree, like: PyTree) -> PyTree:
    """Arrays of any kind -> device arrays with the types and shardings of `like`."""

    def place(x, y):
        host = np.asarray(x, y.dtype)
        return jax.make_array_from_callback(host.shape, y.sharding, lambda index: host[index])

    return jax.tree.map(place, tree, like)


def batch_shapes(
    batch_size: int, seconds: int, size: int, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The part of the batch contract that a train step reads, as shapes to compile for.

    Of remembered features instead: see `remembered.Remembered.shapes`.
    """
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
    frozen: Frozen = NOTHING,
    sharding_rules: Rules = (),
) -> tuple[Callable[[], TrainState], TrainState]:
    """-> function that makes the first state, and that state's shapes with their shardings.

    It is born sharded: no device holds more than its part. A run that goes on never makes it.
    """

    def create() -> TrainState:
        inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(seconds, size)]
        variables = model.init(jax.random.key(seed), *inputs)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        learning, _ = freezing.split(params, frozen.params)
        moving, _ = freezing.split_statistics(batch_stats, frozen)
        ema = {"params": learning, "batch_stats": moving}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(learning),
            ema=None if ema_decay is None else jax.tree.map(jnp.copy, ema),
        )

    shapes = jax.eval_shape(create)
    shardings = state_shardings(shapes, shapes.params, mesh, sharding_rules)
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


def split_batch(x: Array, parts: int, mesh: Mesh | None) -> Array:
    """[b ...] -> [parts b/parts ...]; a part has every parts-th clip: devices keep theirs.

    mesh: that the batch lies on; None: on one device.
    """
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    if mesh is None:
        return x
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
    frozen: Frozen = NOTHING,
    collectives: Collectives = WHOLE_BATCH,
) -> Callable:
    """`step(state, batch) -> (state, {name: f32[]})`, pure.

    The numbers: "loss", its terms, and "grad_norm" of what learns, before it is clipped.

    Args:
      model: made with `frozen.modules`, so that these run as in evaluation.
      loss: `loss(outputs, batch) -> {name: losses.Term}`.
      optimizer: of what learns.
      size: side at which frames are seen; larger or smaller batches are resized on the device.
      alignment: of sound and seconds, see `audio.log_mel`.
      accumulate: the batch is worked through in that many parts, whose sums are divided once, by
        the counts of the whole batch; memory falls accordingly. Batch statistics are those of each
        part in turn.
      frozen: what neither changes nor is differentiated.
      collectives: with an axis, `batch` is one device's part, and the step is to be mapped over it.
    """

    def apply(variables, batch, rng):
        if "frames" in batch:
            method = None
            pictures, sound = batch["frames"], batch["waveform"]
            settings = (normalization, size, alignment)
            inputs = model_inputs(pictures, sound, *settings, batch["frame_mask"])
        else:
            method = "decide_features"
            inputs = (remembered.features_of(batch),)
        outputs, updates = model.apply(
            variables,
            *inputs,
            batch["frame_mask"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
            method=method,
        )
        return outputs, updates.get("batch_stats", {})

    def find_terms(outputs, batch):
        return loss(outputs, batch | {"label": resize_label(batch["label"], size)})

    lies_on = mesh if collectives.axis is None else None
    gradient = _make_gradient(apply, find_terms, accumulate, lies_on, collectives)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        rng = collectives.own_key(jax.random.fold_in(jax.random.key(seed), state.step))
        learning, _ = freezing.split(state.params, frozen.params)
        params = state.params if lies_on is None else gather(state.params, lies_on)
        variables = {"params": params, "batch_stats": state.batch_stats}
        whole, _ = freezing.split(params, frozen.params)
        grads, parts, batch_stats = gradient(whole, variables, batch, rng)
        grads, parts = collectives.total((grads, parts))
        moving, _ = freezing.split_statistics(batch_stats, frozen)
        moving = collectives.agree(moving)
        updates, opt_state = optimizer.update(grads, state.opt_state, learning)
        learning = optax.apply_updates(learning, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = average(ema, {"params": learning, "batch_stats": moving}, state.step, ema_decay)
        params = freezing.overlay(state.params, learning)
        batch_stats = freezing.overlay(batch_stats, moving)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return new, parts | {"grad_norm": optax.tree.norm(grads)}

    return step


def _make_gradient(
    apply: Callable,
    find_terms: Callable,
    accumulate: int,
    mesh: Mesh | None,
    collectives: Collectives,
) -> Callable:
    """`gradient(learning, variables, batch, rng)` -> that of `learning`, which takes the place of
    its like in `variables`; the loss and its terms; new batch statistics. Over devices the first
    two add up."""

    def loss_of(learning, variables, batch, rng, counts):
        params = freezing.overlay(variables["params"], learning)
        outputs, batch_stats = apply(variables | {"params": params}, batch, rng)
        terms = find_terms(outputs, batch)
        if counts is None:
            counts = total_counts(terms)
        total = losses.total(terms, counts)
        return total, ({"loss": total} | losses.means(terms, counts), batch_stats)

    grad_of = jax.grad(loss_of, has_aux=True)

    def at_once(learning, variables, batch, rng):
        grads, (parts, batch_stats) = grad_of(learning, variables, batch, rng, None)
        return grads, parts, batch_stats

    def total_counts(terms):
        return collectives.total({name: term.count for name, term in terms.items()})

    def count_terms(variables, batch, rng):
        """What the whole batch divides by; outputs of zeros, for counts are of labels alone."""
        outputs, _ = jax.eval_shape(apply, variables, batch, rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)
        return total_counts(find_terms(zeros, batch))

    def in_parts(learning, variables, batch, rng):
        counts = count_terms(variables, batch, rng)

        def part(carry, xs):
            grads, batch_stats = carry
            i, batch = xs
            now = variables | {"batch_stats": batch_stats}
            key = jax.random.fold_in(rng, i)
            new, (parts, batch_stats) = grad_of(learning, now, batch, key, counts)
            return (jax.tree.map(jnp.add, grads, new), batch_stats), parts

        zeros = jax.tree.map(jnp.zeros_like, learning)
        (grads, batch_stats), parts = jax.lax.scan(
            part,
            (zeros, variables["batch_stats"]),
            (
                jnp.arange(accumulate),
                jax.tree.map(lambda x: split_batch(x, accumulate, mesh), batch),
            ),
        )
        return grads, jax.tree.map(lambda x: x.sum(0), parts), batch_stats

    return at_once if accumulate == 1 else in_parts


def average(ema: PyTree, values: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """The running average after `step` earlier ones took in `values`.

    At first the decay is (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: with
    0.999 from the start, a run of 1110 steps would end with a third of its random numbers in it.
    """
    n = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, ema, values)


def at_precision(function: Callable, precision: str | None) -> Callable:
    """`function`, whose matrix products and convolutions have at least that precision.

    precision: of `jax.default_matmul_precision`; None is the platform's: on a CPU float32, on TPUs
      one pass of bfloat16, on NVIDIA from Ampere on TF32.
    """

    @functools.wraps(function)
    def run(*args):
        with jax.default_matmul_precision(precision):
            return function(*args)

    return run


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
    return jax.jit(create, out_shardings=replicated(mesh))
