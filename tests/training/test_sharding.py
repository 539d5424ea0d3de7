"""Placement of the state, and the two ways to share a step, on eight forced CPU devices."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from avs_jax import devices, errors
from avs_jax.layers import losses
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime
from avs_jax.training import freezing, sharding, state

PARAMS = {"head": {"kernel": jax.ShapeDtypeStruct((256, 128), jnp.float32)}}
STATE = {"params": PARAMS, "opt_state": ({"mu": PARAMS},), "ema": {"params": PARAMS}}


def place(rules, shapes=STATE):
    return sharding.state_shardings(shapes, PARAMS, devices.make_mesh(fsdp=4), rules)


def test_large_arrays_are_split_over_fsdp_and_small_ones_copied():
    shapes = {
        "large": jax.ShapeDtypeStruct((3, 256, 128), jnp.float32),
        "odd": jax.ShapeDtypeStruct((3, 255, 129), jnp.float32),
        "small": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    placed = place((), shapes)
    assert placed["large"].spec == jax.P(None, "fsdp")
    assert placed["odd"].spec == placed["small"].spec == jax.P()


def test_rules_come_before_the_default_for_a_parameter_its_moments_and_its_average():
    placed = place([("head/.*", (None, "fsdp"))])
    assert [x.spec for x in jax.tree.leaves(placed)] == [jax.P(None, "fsdp")] * 3


@pytest.mark.parametrize("regex", ["haed/kernel", "head"])  # the whole path has to match
def test_a_rule_that_decides_nothing_is_an_error(regex):
    with pytest.raises(errors.BadValueError, match=f"sharding_rules: the regex '{regex}' decides"):
        place([(regex, (None, "fsdp"))])


@pytest.mark.parametrize("axes", [("model",), (None, None, "fsdp")])
def test_axes_that_do_not_fit_are_an_error(axes):
    with pytest.raises(errors.BadValueError, match="does not fit head/kernel of shape"):
        place([("head/.*", axes)])


# ---------------------------------------------------------------- fsdp


class Wide(nn.Module):
    """Layers whose kernels are larger than what runs through them."""

    @nn.compact
    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        b, t = frames.shape[:2]
        x = nn.Conv(128, (3, 3), strides=4)(frames.reshape(b * t, *frames.shape[2:]))
        x = nn.relu(nn.Conv(256, (3, 3))(BatchNorm(Regime())(x, train)))
        x = nn.MultiHeadDotProductAttention(8)(x.reshape(b * t, -1, 256))
        x = nn.Dense(256)(nn.gelu(nn.Dense(512)(x)))
        return {"logits": nn.Dense(1)(x).reshape(b, t, SIZE // 4, SIZE // 4, 1)}


def compile_wide(fsdp):
    """-> (the compiled train step, the state's shapes)."""
    mesh, optimizer = devices.make_mesh(fsdp), optax.adam(1e-3)
    _, shapes = state.plan_state(Wide(), optimizer, mesh, seconds=2, size=SIZE, seed=0)
    step = state.make_train_step(
        Wide(), loss, optimizer, mesh, normalization=NORMALIZATION, size=SIZE, seed=0
    )
    batch = state.batch_shapes(16, 2, SIZE, devices.batch_sharding(mesh))
    names = sharding.name_numbers(step, sharding.WHOLE_BATCH, shapes, batch)
    totals = state.make_empty_totals(names, mesh)()
    step = state.count_steps(step)
    return sharding.compile_step(step, sharding.WHOLE_BATCH, mesh, shapes, totals, batch), shapes


def count_bytes(tree):
    """On each device."""
    shards = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(tree)]
    return sum(int(np.prod(shape)) * size for shape, size in shards)


def test_fsdp_keeps_an_eighth_of_the_state_and_gathers_parameters_alone_and_once():
    compiled, shapes = compile_wide(fsdp=8)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    batch = 2 * (2 * SIZE**2 * 4 + 4 * 32_000 + 2 * 2)  # two clips a device
    arguments = compiled.memory_analysis().argument_size_in_bytes
    assert arguments - batch < count_bytes(shapes) + 100  # and the totals
    assert whole / count_bytes(shapes) > 7.5

    split = [x.shape for x in jax.tree.leaves(shapes.params) if "fsdp" in x.sharding.spec]
    lines = re.findall(r"= (.*?) all-gather(?:-start)?\(", compiled.as_text())
    found = [s for line in lines for s in re.findall(r"\w+\[([\d,]*)\]", line)]
    gathered = [tuple(map(int, s.split(","))) for s in found]
    assert sorted(gathered) == sorted(split)  # each once, and nothing else


# ---------------------------------------------------------------- jax.pmap

RUN = {"parallel": "pmap", "fsdp": 1, "sharding_rules": ()}
SIZE = 16
NORMALIZATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def make_config(**fields):
    return ml_collections.ConfigDict(RUN | {"model": {"running_statistics": "first"}} | fields)


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"parallel": "pmpa"}, "unknown parallel 'pmpa'; known: pmap, sharded."),
        ({"fsdp": 2}, "parallel='pmap' keeps the whole state on every device, fsdp=2 a part of it"),
        ({"sharding_rules": (("head/.*", (None, "data")),)}, "leave out sharding_rules"),
    ],
    ids=str,
)
def test_a_mode_that_cannot_be_is_refused(fields, error):
    with pytest.raises(errors.InputError, match=re.escape(error)):
        sharding.check_parallel(make_config(**fields))


def make_batch(seed, b=16, t=2, size=SIZE):
    """Of clips that differ in how many frames they have, and how many are labelled."""
    rng = np.random.default_rng(seed)
    frame_mask = np.arange(t) < rng.integers(1, t + 1, (b, 1))
    return {
        "frames": rng.integers(0, 256, (b, t, size, size, 3), np.uint8),
        "waveform": rng.uniform(-0.5, 0.5, (b, 16_000 * t)).astype(np.float32),
        "label": rng.integers(0, 2, (b, t, size, size), np.uint8),
        "label_mask": frame_mask & (rng.random((b, t)) < 0.6),
        "frame_mask": frame_mask,
    }


class Small(nn.Module):
    """Sees, hears and normalises; a class of its own, for eight programs of it compile at once."""

    regime: Regime

    @nn.compact
    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        b, t = frames.shape[:2]
        mask = None if frame_mask is None else frame_mask.reshape(b * t)
        x = nn.Conv(4, (3, 3), strides=4)(frames.reshape(b * t, *frames.shape[2:]))
        x = BatchNorm(self.regime)(x, train, mask)
        sound = nn.Dense(4)(log_mel.mean(3)).reshape(b * t, 1, 1, 4)
        return {"logits": nn.Dense(1)(nn.tanh(x) * sound).reshape(b, t, *x.shape[1:3], 1)}


def loss(outputs, batch):
    target = batch["label"][:, :, ::4, ::4].astype(jnp.float32)
    logits = outputs["logits"][..., 0]
    return {
        "bce": losses.make_term(losses.bce_with_logits(logits, target), batch["label_mask"]),
        "dice": losses.make_term(losses.dice(logits, target), batch["frame_mask"], 0.5),
    }


def train(parallel, batches=5, *, accumulate=1, **regime):
    """-> (state, the numbers of each step) after `batches`, or so many of them.

    On eight devices, or where `parallel` is "alone" on the first one, with what one of eight has.
    """
    alone = parallel == "alone"
    mesh = devices.make_mesh(
        devices=jax.devices()[: 1 if alone else 8], by_process=parallel == "pmap"
    )
    config = make_config(parallel="sharded" if alone else parallel)
    config.model.update(regime)
    collectives = sharding.make_collectives(config)
    model = Small(Regime(devices=1 if parallel == "pmap" else mesh.size, **regime))
    frozen = freezing.Frozen(statistics=regime["norm"] == "frozen")
    optimizer = optax.sgd(0.05, momentum=0.9)
    create, state_shapes = state.plan_state(
        model, optimizer, mesh, seconds=2, size=SIZE, seed=0, ema_decay=0.5, frozen=frozen
    )
    step = state.make_train_step(
        model,
        loss,
        optimizer,
        mesh,
        normalization=NORMALIZATION,
        size=SIZE,
        seed=0,
        accumulate=accumulate,
        ema_decay=0.5,
        frozen=frozen,
        collectives=collectives,
    )
    clips = devices.batch_sharding(mesh)
    if isinstance(batches, int):
        batches = [make_batch(seed) for seed in range(batches)]
    batches = [jax.device_put(batch, clips) for batch in batches]
    names = sharding.name_numbers(step, collectives, state_shapes, batches[0])
    empty_totals, current = state.make_empty_totals(names, mesh), create()
    run_step = sharding.compile_step(
        state.count_steps(step), collectives, mesh, current, empty_totals(), batches[0]
    )
    numbers = []
    for batch in batches:
        current, totals, _ = run_step(current, empty_totals(), batch)
        numbers.append(jax.device_get(totals["sums"]))
    return current, numbers


def assert_close(one, other, **tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(b, a, err_msg=jax.tree_util.keystr(path), **tolerance)


def assert_trained_alike(one, other):
    """Equal numbers and state, but for the order of sums."""
    assert_close(one[1], other[1], rtol=1e-5)
    assert_close(one[0], other[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pmap_trains_as_one_program_where_no_statistics_are_taken(accumulate):
    one = train("sharded", norm="frozen", accumulate=accumulate)
    assert_trained_alike(one, train("pmap", norm="frozen", accumulate=accumulate))


@pytest.mark.parametrize("running_statistics", ["first", "mean"])
def test_pmap_takes_each_device_s_statistics(running_statistics):
    """The sharded program's "per_device" groups the batch; pmap's devices know no other clips."""
    one = train("sharded", norm="per_device", running_statistics=running_statistics)
    assert_trained_alike(one, train("pmap", norm="global", running_statistics=running_statistics))


def test_pmap_is_the_mean_of_the_devices_alone_where_all_count_alike():
    everything = {name: np.ones((16, 2), bool) for name in ("label_mask", "frame_mask")}
    batch = make_batch(0) | everything
    whole, (numbers,) = train("pmap", [batch], norm="global")
    parts = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(8)]
    alone, numbers_alone = zip(*(train("alone", [x], norm="global") for x in parts), strict=True)
    means = jax.tree.map(lambda *x: np.mean(x, axis=0), *[x.params for x in alone])
    assert_close(means, whole.params, rtol=1e-5, atol=1e-7)
    assert_close(alone[0].batch_stats, whole.batch_stats, rtol=1e-5, atol=1e-7)
    assert_close(np.mean([x[0]["loss"] for x in numbers_alone]), numbers["loss"], rtol=1e-5)


def test_pmap_leaves_the_same_bits_on_every_device():
    current, _ = train("pmap", norm="global")
    for x in jax.tree.leaves(current):
        copies = [np.asarray(shard.data) for shard in x.addressable_shards]
        assert len(copies) == 8
        assert all((copy == copies[0]).all() for copy in copies)
