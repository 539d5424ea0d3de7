"""State and step: accumulation, averaging, sizes, and what evaluation sees."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avs_jax import devices, models
from avs_jax.models.forward import example_inputs
from avs_jax.training import optim, state

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


def run_step(fill_variables, batch, size=32, **options):
    """One step of plain gradient descent from given weights -> (old state, new state, parts)."""
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    model = models.get_model(**FIELDS)
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(2, 32)]
    variables = fill_variables(model, *inputs)
    optimizer = optim.make_optimizer(variables["params"], lambda _: 0.1, name="sgd", b1=0.0)
    old = state.TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        ema=variables["params"] if options.get("ema_decay") else None,
    )
    step = state.make_train_step(
        model,
        functools.partial(models.get_loss("avesformer")),
        optimizer,
        mesh,
        normalization=NORMALIZATION,
        size=size,
        seed=0,
        **options,
    )
    new, parts = jax.jit(step)(old, batch)
    return old, new, parts


def test_accumulated_gradients_are_those_of_the_whole_batch(fill_variables):
    # Every clip twice: the parts are alike, and so are their batch statistics.
    batch = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), make_batch(b=2))
    _, whole, a = run_step(fill_variables, batch)
    _, parts, b = run_step(fill_variables, batch, accumulate=2)
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)  # sums in another order
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_ema_follows_the_parameters(fill_variables):
    old, new, _ = run_step(fill_variables, make_batch(), ema_decay=0.75)
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, old.ema, new.params)
    for x, y in zip(jax.tree.leaves(new.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert new.variables()["params"] is new.ema


def test_smaller_size_is_trained_on_the_same_batch(fill_variables):
    _, new, parts = run_step(fill_variables, make_batch(size=64), size=32)
    assert int(new.step) == 1
    assert np.isfinite(float(parts["loss"]))


def test_batch_statistics_are_updated(fill_variables):
    old, new, _ = run_step(fill_variables, make_batch())
    a = jax.tree.leaves(old.batch_stats["backbone"])
    b = jax.tree.leaves(new.batch_stats["backbone"])
    assert all(float(jnp.abs(x - y).max()) > 0 for x, y in zip(a, b, strict=True))


def test_frozen_parameters_stay(fill_variables):
    old, new, _ = run_step(fill_variables, make_batch())
    a = jax.tree.leaves(old.params["audio_backbone"])
    b = jax.tree.leaves(new.params["audio_backbone"])
    assert all(bool((x == y).all()) for x, y in zip(a, b, strict=True))


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
        lambda outputs, batch: ((outputs["logits"] ** 2).mean(), {}),
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


@pytest.mark.parametrize("fsdp", [1, 4])
def test_state_is_born_with_its_shardings(fsdp):
    mesh = devices.make_mesh(fsdp=fsdp)
    model = models.get_model(**FIELDS)
    create_state, shapes = state.plan_state(
        model, optax.adam(1e-3), mesh, seconds=1, size=32, seed=0, ema_decay=0.9
    )

    def is_as_planned(x, shape):
        equal = (x.shape, x.dtype) == (shape.shape, shape.dtype)
        return equal and x.sharding.is_equivalent_to(shape.sharding, x.ndim)

    assert jax.tree.all(jax.tree.map(is_as_planned, create_state(), shapes))


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
