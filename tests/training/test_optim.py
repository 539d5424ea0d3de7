"""Optimiser: schedules, what its names say, who learns how fast and who decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avs_jax import errors, models
from avs_jax.models.forward import init_shapes
from avs_jax.training import freezing, optim

PARAMS = {
    "backbone": {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "head": {"kernel": jnp.ones((2, 2))},
}


def update(params=PARAMS, grads=None, **options):
    schedule = optim.make_schedule(0.1, 10, decay="constant")
    optimizer = optim.make_optimizer(params, schedule, **options)
    params, _ = freezing.split(
        params, freezing.find_frozen(params, options.get("freeze", ())).params
    )
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return updates, opt_state


def test_rate_rules_scale_updates():
    updates, _ = update(name="sgd", b1=0.0, rate_rules=(("backbone/.*", 0.1),))
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["backbone"]["conv1"]["kernel"], -0.01, rtol=1e-6)


def test_frozen_parameters_have_no_optimiser_state():
    _, opt_state = update(freeze=("backbone/.*",))
    sizes = [x.size for x in jax.tree.leaves(opt_state) if x.ndim]
    assert sum(sizes) == 2 * PARAMS["head"]["kernel"].size  # two moments of the head


def test_a_rate_rule_of_frozen_parameters_is_no_typo():
    update(freeze=("backbone/.*",), rate_rules=(("backbone/.*", 0.1),))


def test_weight_decay_spares_vectors_by_default():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = update(grads=zeros, weight_decay=0.5)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05, rtol=1e-6)
    assert float(jnp.abs(updates["backbone"]["conv1"]["bias"]).max()) == 0


def test_learned_tokens_do_not_decay():
    tokens = {"queries": jnp.ones((2, 2)), "pqg": {"prompts": jnp.ones((2, 2))}}
    zeros = jax.tree.map(jnp.zeros_like, tokens)
    updates, _ = update(tokens, zeros, weight_decay=0.5)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_what_has_axes_and_is_no_kernel_is_a_learned_token(name):
    shapes = init_shapes(models.get_model(name, "small_resnet", audio_backbone="audio_cnn"), 1, 32)
    named = jax.tree_util.tree_leaves_with_path(shapes["params"])
    matrices = {path[-1].key for path, x in named if x.ndim > 1}
    assert matrices - {"kernel"} <= {"queries", "prompts"}


def test_decay_rules_override_the_default():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = update(grads=zeros, weight_decay=0.5, decay_rules=(("head/.*", 0.0),))
    assert float(jnp.abs(updates["head"]["kernel"]).max()) == 0


def test_adamw_equals_optax():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
    ours, _ = update(params, grads, weight_decay=0.5, decay_rules=((".*", 1.0),))
    reference = optax.adamw(0.1, weight_decay=0.5)
    theirs, _ = reference.update(grads, reference.init(params), params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


STEPS = 5


def trajectory(**options):
    """A parameter over some steps at rate 0.1, decay 0.5, with gradients 1, 2, ..."""
    params = {"kernel": jnp.ones((1, 1))}
    optimizer = optim.make_optimizer(params, lambda _: 0.1, weight_decay=0.5, **options)
    opt_state, values = optimizer.init(params), []
    for i in range(STEPS):
        grads = {"kernel": jnp.full((1, 1), i + 1.0)}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        values.append(float(params["kernel"][0, 0]))
    return values


def adam_as_pytorch(decoupled):
    """torch.optim.Adam's and AdamW's documented algorithms, b1 0.9, b2 0.99, eps 1e-8."""
    p, m, v, values = 1.0, 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        g = float(t)
        if decoupled:
            p -= 0.1 * 0.5 * p
        else:
            g += 0.5 * p
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        p -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        values.append(p)
    return values


@pytest.mark.parametrize("name, decoupled", [("adam", False), ("adamw", True)])
def test_adam_has_an_l2_penalty_and_adamw_decoupled_decay(name, decoupled):
    expected = adam_as_pytorch(decoupled)
    np.testing.assert_allclose(trajectory(name=name, b2=0.99), expected, rtol=1e-5)


def test_sgd_has_an_l2_penalty():
    p, momentum, expected = 1.0, 0.0, []
    for t in range(1, STEPS + 1):
        momentum = 0.9 * momentum + t + 0.5 * p
        p -= 0.1 * momentum
        expected.append(p)
    np.testing.assert_allclose(trajectory(name="sgd"), expected, rtol=1e-5)


def test_the_gradient_is_cut_before_its_penalty():
    p = 1.0 - 0.1 * (0.25 + 0.5)  # PyTorch: clip_grad_norm_, then the optimiser
    assert trajectory(name="sgd", clip_norm=0.25)[0] == pytest.approx(p, rel=1e-6)


def test_a_part_s_rate_is_the_average_of_its_numbers():
    rates = optim.part_rates(PARAMS, ("head/.*",), ((".*/kernel", 0.1), ("backbone/.*", 1.0)))
    assert rates == {"backbone": pytest.approx((4 * 0.1 + 2) / 6), "head": 0.0}


@pytest.mark.parametrize("decay, end", [("cosine", 0.0), ("poly", 0.0), ("constant", 1.0)])
def test_schedule_warms_up_and_ends(decay, end):
    schedule = optim.make_schedule(1.0, 100, warmup_steps=9, decay=decay)
    rates = [float(schedule(i)) for i in range(10)]
    np.testing.assert_allclose(rates, np.arange(1, 11) / 10, rtol=1e-6)  # the first step counts
    np.testing.assert_allclose(schedule(100), end, atol=1e-6)


def test_schedule_without_warm_up_starts_at_the_full_rate():
    assert float(optim.make_schedule(0.5, 100)(0)) == 0.5


def test_unknown_names_are_refused():
    with pytest.raises(errors.UnknownNameError, match="unknown learning-rate decay 'linear'"):
        optim.make_schedule(1.0, 10, decay="linear")
    with pytest.raises(errors.UnknownNameError, match="unknown optimizer 'lion'"):
        optim.make_optimizer(PARAMS, lambda _: 0.1, name="lion")
