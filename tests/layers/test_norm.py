"""Batch normalisation: its policies, padded frames, frozen parts, passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from avs_jax import devices, errors
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime


def maps(n=8, seed=0, mean=1.0):
    rng = np.random.default_rng(seed)
    return jnp.float32(rng.normal(mean, 1.0 + rng.random((n, 1, 1, 4)), (n, 3, 2, 4)))


def start(x):
    """Statistics and parameters that are not those of a new layer."""
    return {
        "params": {"scale": jnp.arange(1.0, 5.0), "bias": jnp.full(4, 0.5)},
        "batch_stats": {"mean": jnp.full(4, 0.3), "var": jnp.full(4, 2.0)},
    }


def run(x, frame_mask=None, **regime):
    """Outputs and new statistics of a training step."""
    norm = BatchNorm(Regime(**regime))
    y, new = norm.apply(start(x), x, True, frame_mask, mutable="batch_stats")
    return np.asarray(y), new["batch_stats"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_global_equals_flaxs(train, masked):
    x, frame_mask = maps(), jnp.arange(8) < 5
    mask = frame_mask if masked else None
    theirs = nn.BatchNorm(not train, momentum=0.9, use_fast_variance=False)
    flax_mask = mask[:, None, None, None] if masked else None
    expected = theirs.apply(start(x), x, mask=flax_mask, mutable="batch_stats")
    ours = BatchNorm().apply(start(x), x, train, mask, mutable="batch_stats")
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_masked_statistics_are_those_of_the_real_frames_alone():
    x = maps()
    padded = x.at[5:].set(jnp.nan)  # whatever is there
    y, statistics = run(padded, jnp.arange(8) < 5)
    expected, alone = run(x[:5])
    np.testing.assert_allclose(y[:5], expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), statistics, alone)


def test_per_device_normalises_each_devices_clips_by_themselves():
    x = maps(16)
    y, statistics = run(x, norm="per_device", devices=8)
    parts = [run(x[i : i + 2]) for i in range(0, 16, 2)]
    np.testing.assert_allclose(y, np.concatenate([y for y, _ in parts]), rtol=1e-5, atol=1e-6)
    # DataParallel keeps the buffers of its first replica.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), statistics, parts[0][1])


def test_per_device_on_eight_devices_needs_no_message_for_its_normalisation():
    mesh = devices.make_mesh()
    x = jax.device_put(maps(16), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

    def normalise(norm):
        module = BatchNorm(Regime(norm=norm, devices=8))
        call = jax.jit(lambda x: module.apply(start(x), x, True, mutable="batch_stats")[0])
        return call.lower(x).compile().as_text().count("all-reduce("), call(x)

    count, y = normalise("per_device")
    assert count == 0
    assert normalise("global")[0] > 0
    np.testing.assert_allclose(
        y, run(maps(16), norm="per_device", devices=8)[0], rtol=1e-5, atol=1e-6
    )


def test_a_device_whose_clips_are_all_padding_stays_finite_and_moves_nothing():
    x, frame_mask = maps(8), jnp.arange(8) >= 2
    y, statistics = run(x, frame_mask, norm="per_device", devices=4)
    assert np.isfinite(y).all()
    before = start(x)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, statistics, before)


def test_per_device_needs_frames_that_divide():
    with pytest.raises(errors.BadValueError, match="6 frames are not divisible by 4 devices"):
        run(maps(6), norm="per_device", devices=4)


def test_per_device_takes_any_number_of_frames_in_evaluation():
    x = maps(3)
    module = BatchNorm(Regime(norm="per_device", devices=8))
    np.testing.assert_array_equal(
        module.apply(start(x), x, False), BatchNorm().apply(start(x), x, False)
    )


def test_frozen_norm_uses_and_keeps_the_running_statistics():
    x = maps()
    y, statistics = run(x, norm="frozen")
    jax.tree.map(np.testing.assert_array_equal, statistics, start(x)["batch_stats"])
    np.testing.assert_array_equal(y, BatchNorm().apply(start(x), x, False))


class Two(nn.Module):
    regime: Regime

    @nn.compact
    def __call__(self, x, train):
        x = BatchNorm(self.regime, name="first")(x, train)
        return BatchNorm(self.regime, name="first_too")(x, train)


def test_a_frozen_path_is_one_module_not_all_whose_names_begin_so():
    x = maps()
    module = Two(Regime(frozen=("first",)))
    variables = module.init(jax.random.key(0), x, False)
    _, new = module.apply(variables, x, True, mutable="batch_stats")
    before, after = variables["batch_stats"], new["batch_stats"]
    np.testing.assert_array_equal(before["first"]["mean"], after["first"]["mean"])
    assert np.abs(before["first_too"]["mean"] - after["first_too"]["mean"]).max() > 0.01


@pytest.mark.parametrize("masked", [True, False])
def test_one_pass_equals_two_where_the_running_mean_is_near(masked):
    mask = jnp.arange(8) < 5 if masked else None
    x = maps(mean=0.0)
    (one, one_new), (two, two_new) = (run(x, mask, two_pass_variance=p) for p in (False, True))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one_new, two_new)


def count_messages(two_pass):
    """All-reduces of a training step of one layer on eight devices."""
    mesh = devices.make_mesh()
    spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    module = BatchNorm(Regime(two_pass_variance=two_pass))

    def loss(x, y):
        out, _ = module.apply(start(x), x, True, mutable="batch_stats")
        return (out * y).sum(axis=(1, 2, 3))  # per frame: the loss itself sends nothing

    def step(x, y):
        return jax.vjp(loss, x, y)[1](jnp.ones(16))[0]

    shape = jax.ShapeDtypeStruct((16, 3, 2, 4), jnp.float32, sharding=spec)
    text = jax.jit(step).lower(shape, shape).compile().as_text()
    return text.count(" all-reduce(")


def test_two_passes_send_one_message_more_than_one():
    assert (count_messages(two_pass=True), count_messages(two_pass=False)) == (3, 2)


@pytest.mark.parametrize("two_pass", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_those_that_autodiff_finds_in_flaxs(masked, two_pass):
    x, dy = maps(), maps(seed=1)
    frame_mask = jnp.arange(8) < 5 if masked else None
    flax_mask = frame_mask[:, None, None, None] if masked else None

    def gradients(module, *args, **kwargs):
        def loss(params, x):
            variables = start(x) | {"params": params}
            y, _ = module.apply(variables, x, *args, **kwargs, mutable="batch_stats")
            return (y * dy).sum()

        return jax.grad(loss, argnums=(0, 1))(start(x)["params"], x)

    ours = gradients(BatchNorm(Regime(two_pass_variance=two_pass)), True, frame_mask)
    flaxs = gradients(nn.BatchNorm(False, use_fast_variance=False), mask=flax_mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, flaxs)


def test_per_device_gradients_are_those_of_each_devices_clips_by_themselves():
    x, dy = maps(16), maps(16, seed=1)

    def gradient(x, dy, **regime):
        def loss(x):
            y, _ = BatchNorm(Regime(**regime)).apply(start(x), x, True, mutable="batch_stats")
            return (y * dy).sum()

        return np.asarray(jax.grad(loss)(x))

    parts = [gradient(x[i : i + 2], dy[i : i + 2]) for i in range(0, 16, 2)]
    found = gradient(x, dy, norm="per_device", devices=8)
    np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-5, atol=1e-6)


def test_the_default_is_two_passes_on_cpus():
    x = maps(mean=300.0)
    (default, _), (two, _) = (run(x, two_pass_variance=p) for p in (None, True))
    np.testing.assert_array_equal(default, two)


def test_unknown_norm_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="'sync'; known: frozen, global, per_device"):
        Regime(norm="sync")
