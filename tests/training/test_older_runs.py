"""Checkpoints of version 0.1: its arrays in the places that they have today."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avs_jax.training import freezing, older_runs, optim, state

PARAMS = {
    "head": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 3.0)},
    "audio_backbone": {"kernel": jnp.full((2, 2), 4.0)},
}
STATISTICS = {"head": {"mean": jnp.full(2, 5.0)}, "audio_backbone": {"mean": jnp.full(2, 6.0)}}
FREEZE = ("audio_backbone/.*",)


def old_checkpoint():
    """The trees as orbax gives them back: plain dicts and lists, None for what was empty."""
    moments = jax.tree.map(lambda x: x * 10, PARAMS["head"])
    empty = {"audio_backbone": {"kernel": None}}
    adam = {"count": jnp.int32(7), "mu": {"head": moments} | empty}
    adam["nu"] = {"head": jax.tree.map(lambda x: x * 100, PARAMS["head"])} | empty
    chain = [None, adam, None, None, {"count": jnp.int32(7)}]
    inner = {"trained": {"inner_state": chain}, "frozen": {"inner_state": None}}
    average = jax.tree.map(lambda x: x * 1000, PARAMS)
    model = {"params": PARAMS, "batch_stats": STATISTICS, "ema": average}
    return model, {"step": jnp.int32(7), "opt_state": {"inner_states": inner}}


def shapes_of_today(name="adamw"):
    optimizer = optim.make_optimizer(
        PARAMS, lambda _: 0.1, name=name, clip_norm=1.0, weight_decay=0.1, freeze=FREEZE
    )
    frozen = freezing.find_frozen(PARAMS, FREEZE)
    learning, _ = freezing.split(PARAMS, frozen.params)
    moving, _ = freezing.split_statistics(STATISTICS, frozen)
    ema = {"params": learning, "batch_stats": moving}
    opt_state = optimizer.init(learning)
    return state.TrainState(jnp.int32(0), PARAMS, STATISTICS, opt_state, ema)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_moments_and_averages_of_what_learns_are_found(name):
    found = older_runs.translate(*old_checkpoint(), shapes_of_today(name))
    assert int(found.step) == 7
    mu, nu = (optax.tree.get(found.opt_state, kind) for kind in ("mu", "nu"))
    np.testing.assert_array_equal(mu["head"]["kernel"], 20.0)
    np.testing.assert_array_equal(nu["head"]["bias"], 300.0)
    assert mu.keys() == found.ema["params"].keys() == {"head"}
    np.testing.assert_array_equal(found.ema["params"]["head"]["kernel"], 2000.0)
    np.testing.assert_array_equal(found.ema["batch_stats"]["head"]["mean"], 5.0)
    counts = [x for _, x in optax.tree.get_all_with_path(found.opt_state, "count")]
    assert [int(x) for x in counts] == [7, 7]


def test_another_optimiser_is_refused():
    with pytest.raises(ValueError, match="holds no trace/head"):
        older_runs.translate(*old_checkpoint(), shapes_of_today("sgd"))


def test_names_tell_the_version():
    moment = "optimizer/opt_state/inner_states/trained/inner_state/1/mu/head/kernel"
    assert older_runs.is_old(["model/params/head/kernel", moment])
    assert not older_runs.is_old(["model/params/head/kernel", "optimizer/opt_state/1/mu/head/bias"])
