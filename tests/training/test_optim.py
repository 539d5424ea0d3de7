"""Optimiser: rules, schedules, freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avs_jax import errors
from avs_jax.training import optim

PARAMS = {
    "backbone": {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "head": {"kernel": jnp.ones((2, 2))},
}


def update(params=PARAMS, grads=None, **options):
    schedule = optim.make_schedule(0.1, 10, decay="constant")
    optimizer = optim.make_optimizer(params, schedule, **options)
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return updates, opt_state


def test_first_matching_rule_wins():
    values = optim.apply_rules([(".*/bias", 2.0), ("backbone/.*", 3.0)], PARAMS, 1.0, "rules")
    assert values["backbone"]["conv1"] == {"kernel": 3.0, "bias": 2.0}
    assert values["head"]["kernel"] == 1.0


def test_rule_that_decides_nothing_is_an_error():
    with pytest.raises(errors.BadValueError, match=r"rules: the regex 'vggish/\.\*' decides no"):
        optim.apply_rules([("vggish/.*", 2.0)], PARAMS, 1.0, "rules")


def test_rule_hidden_by_earlier_ones_is_an_error():
    with pytest.raises(errors.BadValueError, match="decides no parameter"):
        optim.apply_rules([(".*", 1.0), ("head/.*", 2.0)], PARAMS, 1.0, "rules")


def test_rule_that_is_no_regex_is_an_error():
    with pytest.raises(errors.BadValueError, match="is not a regex"):
        optim.apply_rules([("(", 1.0)], PARAMS, 1.0, "rules")


def test_rate_rules_scale_updates():
    updates, _ = update(name="sgd", b1=0.0, rate_rules=(("backbone/.*", 0.1),))
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["backbone"]["conv1"]["kernel"], -0.01, rtol=1e-6)


def test_frozen_parameters_have_no_update_and_no_optimiser_state():
    updates, opt_state = update(freeze=("backbone/.*",))
    assert float(jnp.abs(updates["backbone"]["conv1"]["kernel"]).max()) == 0
    sizes = [x.size for x in jax.tree.leaves(opt_state) if x.ndim]
    assert sum(sizes) == 2 * PARAMS["head"]["kernel"].size  # two moments of the head


def test_weight_decay_spares_vectors_by_default():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = update(grads=zeros, weight_decay=0.5)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05, rtol=1e-6)
    assert float(jnp.abs(updates["backbone"]["conv1"]["bias"]).max()) == 0


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


@pytest.mark.parametrize("decay, end", [("cosine", 0.0), ("poly", 0.0), ("constant", 1.0)])
def test_schedule_warms_up_and_ends(decay, end):
    schedule = optim.make_schedule(1.0, 100, warmup_steps=10, decay=decay)
    assert float(schedule(0)) == 0.0
    np.testing.assert_allclose(schedule(10), 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedule(100), end, atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(errors.UnknownNameError, match="unknown learning-rate decay 'linear'"):
        optim.make_schedule(1.0, 10, decay="linear")
    with pytest.raises(errors.UnknownNameError, match="unknown optimizer 'lion'"):
        optim.make_optimizer(PARAMS, lambda _: 0.1, name="lion")
