"""State and step: accumulation, averaging, freezing, sizes, and what evaluation sees."""

import collections
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avs_jax import devices, models
from avs_jax.layers.losses import make_term
from avs_jax.models.forward import example_inputs, init_shapes
from avs_jax.training import freezing, optim, state
from tests.models import unequal_clips

FIELDS = {
    "name": "avesformer",
    "backbone": "small_resnet",
    "audio_backbone": "audio_cnn",
    "dim": 8,
    "num_heads": 2,
    "pqg_layers": 1,
    "pqg_hidden": 8,
    "early_stages": 1,
    "late_stages": 1,
    "late_hidden": 8,
    "head_widths": (8, 8),
    "norm_groups": 4,
}
NORMALIZATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def make_batch(b=4, t=2, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (b, t, size, size, 3)), jnp.uint8),
        "waveform": jnp.asarray(rng.uniform(-0.5, 0.5, (b, 16_000 * t)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 3, (b, t, size, size)), jnp.int32),
        "label_mask": jnp.ones((b, t), bool),
        "frame_mask": jnp.ones((b, t), bool),
    }


def prepare(fill_variables, freeze=(), optimizer=None, **options):
    """-> (state of given weights, step); plain gradient descent, or an `optimizer`'s settings."""
    shapes = init_shapes(models.get_model(**FIELDS), 2, 32)
    frozen = freezing.find_frozen(shapes["params"], freeze)
    model = models.get_model(**FIELDS, frozen=frozen.modules)
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(2, 32)]
    variables = fill_variables(model, *inputs)
    settings = optimizer or {"name": "sgd", "b1": 0.0}
    optimizer = optim.make_optimizer(shapes["params"], lambda _: 0.1, freeze=freeze, **settings)
    learning, _ = freezing.split(variables["params"], frozen.params)
    moving, _ = freezing.split_statistics(variables["batch_stats"], frozen)
    old = state.TrainState(
        step=np.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(learning),
        ema={"params": learning, "batch_stats": moving} if options.get("ema_decay") else None,
    )
    step = state.make_train_step(
        model,
        models.get_loss("avesformer"),
        optimizer,
        devices.make_mesh(devices=jax.devices()[:1]),
        normalization=NORMALIZATION,
        size=options.pop("size", 32),
        seed=0,
        frozen=frozen,
        **options,
    )
    return old, step


def run_step(fill_variables, batch, **options):
    """-> (old state, new state, the step's numbers), as NumPy's arrays."""
    old, step = prepare(fill_variables, **options)
    # Compared by NumPy: jax would compile every comparison for every shape.
    return jax.device_get((old, *jax.jit(step)(old, batch)))


@pytest.fixture(scope="module")
def averaging(fill_variables):
    """(state, step) that keeps averages; compiled once, as all take clips of one second."""
    old, step = prepare(fill_variables, ema_decay=0.75)
    return jax.device_get(old), jax.jit(step)


# ---------------------------------------------------------------- accumulation


class Answers(nn.Module):
    """Outputs of the kind that a model's loss takes, of linear layers: clips do not meet in it."""

    of: str
    k: int

    @nn.compact
    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        def maps(stride, *shape):
            x = nn.Dense(int(np.prod(shape)))(frames[:, :, ::stride, ::stride])
            return x.reshape(*x.shape[:-1], *shape)

        sound = log_mel.mean(3)  # [b t 96]
        outputs = {"tags": nn.Dense(3)(sound), "semantic": maps(4, 3)}
        layers, queries = unequal_clips.LAYERS, unequal_clips.QUERIES
        if self.of == "catr":
            outputs["pred_masks"] = jnp.moveaxis(maps(2, layers, queries), (-2, -1), (0, 3))
            classes = nn.Dense(layers * queries * (self.k + 1))(sound)
            classes = classes.reshape(*sound.shape[:2], layers, queries, self.k + 1)
            outputs["pred_is_referred"] = jnp.moveaxis(classes, 2, 0)
            return outputs
        outputs["logits"] = maps(1, self.k)
        if self.of == "pcmanet":
            outputs["outputs"] = tuple(maps(1, self.k) for _ in range(4))
            outputs["masks"] = tuple(maps(stride, 1)[..., 0] > 0 for stride in (8, 4, 2))
        return outputs


def prepare_answers(loss, size):
    """-> (shapes of a state, step of gradient descent) of a small network of linear layers."""
    model, optimizer = Answers("avesformer", 1), optax.sgd(0.1)
    params = init_shapes(model, 2, size)["params"]
    step = state.make_train_step(
        model,
        loss,
        optimizer,
        devices.make_mesh(devices=jax.devices()[:1]),
        normalization=NORMALIZATION,
        size=size,
        seed=0,
    )
    shape = jax.ShapeDtypeStruct((), jnp.int32)
    return state.TrainState(shape, params, {}, optimizer.init(params)), step


@pytest.mark.parametrize("name, k", unequal_clips.CASES)
def test_accumulation_of_unequal_clips_is_a_step_on_the_whole_batch(fill_variables, name, k):
    t, size = unequal_clips.FRAMES, unequal_clips.SIZE
    batch = make_batch(2, t, size) | unequal_clips.make_batch()
    model = Answers(name, k)
    params = fill_variables(model, *(jnp.zeros(x.shape) for x in example_inputs(t, size)))["params"]
    optimizer = optax.sgd(0.1)
    results = []
    for accumulate in (1, 2):
        step = state.make_train_step(
            model,
            unequal_clips.loss_of_every_term(name),
            optimizer,
            devices.make_mesh(devices=jax.devices()[:1]),
            normalization=NORMALIZATION,
            size=size,
            seed=0,
            accumulate=accumulate,
        )
        old = state.TrainState(jnp.int32(0), params, {}, optimizer.init(params))
        new, parts = jax.jit(step)(old, batch)
        new, parts = jax.device_get((new, parts))
        results.append((jax.tree.map(np.subtract, new.params, params), parts))
    (whole, numbers), (in_parts, numbers_in_parts) = results
    assert numbers["grad_norm"] > 0.1
    for key, value in numbers.items():
        np.testing.assert_allclose(numbers_in_parts[key], value, rtol=1e-4, err_msg=key)
    for x, y in zip(jax.tree.leaves(in_parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)  # sums in another order


def test_accumulated_batch_statistics_are_of_every_part_in_turn(averaging, fill_variables):
    # Every clip twice: the parts are alike, and so are their batch statistics.
    batch = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), make_batch(b=2, t=1))
    old, step = averaging
    whole, _ = step(old, batch)
    _, parts, _ = run_step(fill_variables, batch, accumulate=2)
    trees = (x.batch_stats for x in (old, whole, parts))
    for x, y, z in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(z - y, 0.95 * (y - x), atol=1e-5)  # momentum of light.py


# ---------------------------------------------------------------- averages


@pytest.mark.parametrize("start, decay", [(0, 0.1), (9, 10 / 19), (100_000, 0.75)])
def test_averages_of_weights_and_statistics_warm_up_to_their_decay(averaging, start, decay):
    old, step = averaging
    new, _ = jax.device_get(step(old.replace(step=np.int32(start)), make_batch(t=1)))
    now = {"params": new.params, "batch_stats": new.batch_stats}
    expected = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, old.ema, now)
    for x, y in zip(jax.tree.leaves(new.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert same(new.variables(), new.ema)


def test_a_short_run_keeps_nothing_of_its_random_start_in_the_average():
    ema = jnp.float32(1.0)  # the start; what is learnt is 0

    def one(ema, step):
        return state.average(ema, jnp.float32(0.0), step, 0.999), None

    ema, _ = jax.lax.scan(one, ema, jnp.arange(1110))
    assert ema < 1e-6  # 0.999 ** 1110 is 0.33


# ---------------------------------------------------------------- freezing

FREEZE = ("backbone/.*", "audio_backbone/.*", "pqg/.*")


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.fixture(scope="module")
def frozen_step(fill_variables):
    """A step of AdamW with decay and averages, of which much is frozen."""
    optimizer = {"name": "adamw", "weight_decay": 10.0}
    options = {"freeze": FREEZE, "ema_decay": 0.5, "optimizer": optimizer}
    return run_step(fill_variables, make_batch(), **options)


def test_frozen_parts_neither_change_nor_decay_and_keep_their_statistics(frozen_step):
    old, new, _ = frozen_step
    for part in ("backbone", "audio_backbone", "pqg"):
        assert same(old.params[part], new.params[part])
    for part in ("backbone", "audio_backbone"):
        assert same(old.batch_stats[part], new.batch_stats[part])
    assert not same(old.params["head"], new.params["head"])


def test_frozen_parts_have_no_moments_and_no_average(frozen_step):
    _, new, _ = frozen_step
    kept = {"opt_state": new.opt_state, "ema": new.ema}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(kept)]
    assert any("head" in path for path in paths)
    assert not [path for path in paths if re.search("backbone|pqg", path)]
    assert new.variables()["params"].keys() == new.params.keys()


def test_the_gradient_s_norm_is_of_what_learns(frozen_step):
    _, new, parts = frozen_step
    first_moments = optax.tree.get(new.opt_state, "mu")  # after one step: 1 - b1 of the gradient
    assert first_moments.keys() == new.params.keys() - {"backbone", "audio_backbone", "pqg"}
    np.testing.assert_allclose(parts["grad_norm"], 10 * optax.tree.norm(first_moments), rtol=1e-3)


def backward_convolutions(fill_variables, freeze):
    """{part of the model: convolutions in the backward pass of a step's program}."""
    old, step = prepare(fill_variables, freeze)
    found = collections.Counter()

    def visit(jaxpr, outer=()):
        for equation in jaxpr.eqns:
            scopes = [*outer, *str(equation.source_info.name_stack).split("/")]
            backward = any("transpose(" in scope for scope in scopes)
            if equation.primitive.name == "conv_general_dilated" and backward:
                found[next(name for name in scopes if name in old.params)] += 1
            for value in equation.params.values():
                for inner in value if isinstance(value, list | tuple) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        visit(inner, scopes)

    visit(jax.make_jaxpr(step)(old, make_batch()).jaxpr)
    return found


@pytest.fixture(scope="module")
def whole(fill_variables):
    """`backward_convolutions` where all learns."""
    return backward_convolutions(fill_variables, ())


def test_the_backward_pass_of_frozen_parts_is_not_in_the_program(fill_variables, whole):
    assert whole["backbone"] > 10 and whole["audio_backbone"] > 2
    rest = backward_convolutions(fill_variables, ("backbone/.*", "audio_backbone/.*"))
    # Nor are gradients of what they hand to the neck, whose four levels begin with a convolution.
    learning = {name: n for name, n in whole.items() if "backbone" not in name}
    assert rest == learning | {"neck": whole["neck"] - 4}


def test_the_backward_pass_ends_at_the_frozen_layers(fill_variables, whole):
    part = backward_convolutions(fill_variables, ("backbone/(stem|layer1).*",))
    assert 0 < part["backbone"] < whole["backbone"]


# ---------------------------------------------------------------- the rest


def test_smaller_size_is_trained_on_the_same_batch():
    sizes = []

    def loss(outputs, batch):
        sizes.append((outputs["logits"].shape[2:4], batch["label"].shape[2:]))
        return models.get_loss("avesformer")(outputs, batch)

    old, step = prepare_answers(loss, size=16)
    old = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), old)
    new, parts = jax.jit(step)(old, make_batch(size=32))
    assert set(sizes) == {((16, 16), (16, 16))}
    assert np.isfinite(float(parts["loss"]))
    assert not same(old.params, new.params)


def test_batch_statistics_are_updated(averaging):
    old, step = averaging
    new, _ = jax.device_get(step(old, make_batch(t=1)))
    a = jax.tree.leaves(old.batch_stats["backbone"])
    b = jax.tree.leaves(new.batch_stats["backbone"])
    assert all(np.abs(x - y).max() > 0 for x, y in zip(a, b, strict=True))


def test_labels_are_resized_to_the_nearest_pixel():
    label = jnp.arange(16, dtype=jnp.int32).reshape(1, 1, 4, 4)
    small = state.resize_label(label, 2)
    assert small.dtype == jnp.int32
    assert set(np.asarray(small).ravel().tolist()) <= set(range(16))
    assert bool((state.resize_label(small, 4)[..., ::2, ::2] == small).all())


class Mirror(nn.Module):
    """Hands out what it is given, times one parameter."""

    @nn.compact
    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        sound = jnp.broadcast_to(log_mel.mean((2, 3))[..., None, None, None], frames.shape)
        return {"logits": scale * jnp.concatenate([frames, sound], axis=-1)}


MIRROR = {"params": {"scale": jnp.ones(())}}


def test_what_lies_in_padded_frames_does_not_reach_training():
    optimizer = optax.sgd(0.1)
    step = state.make_train_step(
        Mirror(),
        lambda outputs, batch: {"loss": make_term(outputs["logits"] ** 2, jnp.ones(()))},
        optimizer,
        devices.make_mesh(devices=jax.devices()[:1]),
        normalization=NORMALIZATION,
        size=32,
        seed=0,
    )
    params = MIRROR["params"]
    old = state.TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    batch = make_batch(b=2) | {"frame_mask": jnp.array([[True, True], [True, False]])}
    one, _ = jax.jit(step)(old, batch)
    batch["frames"] = batch["frames"].at[1, 1].set(77)
    two, _ = jax.jit(step)(old, batch)
    assert float(one.params["scale"]) == float(two.params["scale"]) != 1.0


def test_products_and_convolutions_have_the_precision_that_is_asked_for():
    """Backward ones, too, which take over that of the forward pass."""
    old, step = prepare_answers(models.get_loss("avesformer"), size=16)
    batch = make_batch(size=16)

    def found(precision):
        text = jax.jit(state.at_precision(step, precision)).lower(old, batch).as_text()
        return set(re.findall(r"precision = \[(\w+), (\w+)\]", text))

    assert ("DEFAULT", "DEFAULT") in found(None)
    assert found("highest") == {("HIGHEST", "HIGHEST")}


class Wide(nn.Module):
    """A kernel that is worth splitting, small parameters, and statistics."""

    @nn.compact
    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        return {"logits": nn.BatchNorm(not train)(nn.Dense(512)(log_mel))}


@pytest.mark.parametrize("fsdp", [1, 4])
def test_state_is_born_with_its_shardings(fsdp):
    mesh = devices.make_mesh(fsdp=fsdp)
    create_state, shapes = state.plan_state(
        Wide(), optax.adam(1e-3), mesh, seconds=1, size=32, seed=0, ema_decay=0.9
    )

    def is_as_planned(x, shape):
        equal = (x.shape, x.dtype) == (shape.shape, shape.dtype)
        return equal and x.sharding.is_equivalent_to(shape.sharding, x.ndim)

    born = create_state()
    assert jax.tree.all(jax.tree.map(is_as_planned, born, shapes))
    split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(born))
    assert split == (4 if fsdp > 1 else 0)  # the kernel, its two moments and its average


def test_totals_remember_the_first_bad_step():
    def step(current, loss):
        new = current.replace(step=current.step + 1)
        return new, {"loss": loss, "grad_norm": jnp.float32(1.0)}

    counted = state.count_steps(step)
    current = state.TrainState(jnp.int32(0), {}, {}, {})
    totals = state.make_empty_totals(["loss", "grad_norm"], devices.make_mesh())()
    for loss in (1.0, np.nan, 2.0, np.inf):
        current, totals, _ = counted(current, totals, jnp.float32(loss))
    assert int(totals["bad_step"]) == 2
    assert int(totals["count"]) == 4
