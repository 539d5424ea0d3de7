"""One list decides what is frozen, and means all of it."""

import jax.numpy as jnp
import pytest

from avs_jax import errors
from avs_jax.training import freezing

PARAMS = {
    "backbone": {
        "layer1": {"conv": {"kernel": jnp.ones(1)}, "bn": {"scale": jnp.ones(1)}},
        "layer2": {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}},
    },
    "head": {"kernel": jnp.ones(1)},
}
STATISTICS = {"backbone": {"layer1": {"bn": {"mean": jnp.ones(1)}}}, "gates": {"mean": jnp.ones(1)}}


@pytest.mark.parametrize(
    "freeze, modules",
    [
        ((), ()),
        (("backbone/.*",), ("backbone",)),
        (("backbone/layer1/.*", ".*/bias"), ("backbone/layer1",)),
        ((".*/layer1/bn/.*", "backbone/layer2/.*"), ("backbone/layer1/bn", "backbone/layer2")),
        (("backbone/.*/kernel",), ("backbone/layer1/conv",)),
    ],
)
def test_modules_are_the_largest_that_are_frozen_whole(freeze, modules):
    assert freezing.find_frozen(PARAMS, freeze).modules == modules


def test_split_and_overlay_are_inverse():
    frozen = freezing.find_frozen(PARAMS, ("backbone/layer1/.*", ".*/bias"))
    learning, rest = freezing.split(PARAMS, frozen.params)
    assert list(learning["backbone"]) == ["layer2"] and "bias" not in learning["backbone"]["layer2"]
    assert "head" not in rest
    assert freezing.overlay(rest, learning) == freezing.overlay(PARAMS, learning) == PARAMS
    assert freezing.pick(PARAMS, learning) == learning


@pytest.mark.parametrize(
    "freeze, norm, moving",
    [
        ((), "global", ["backbone", "gates"]),
        (("backbone/layer1/.*",), "global", ["gates"]),
        (("head/.*",), "frozen", []),
    ],
)
def test_statistics_stay_where_their_module_is_frozen(freeze, norm, moving):
    frozen = freezing.find_frozen(PARAMS, freeze, norm)
    follow, stay = freezing.split_statistics(STATISTICS, frozen)
    assert sorted(follow) == moving
    assert freezing.overlay(follow, stay) == STATISTICS


def test_freezing_everything_is_an_error():
    with pytest.raises(errors.BadValueError, match="freezes every parameter"):
        freezing.find_frozen(PARAMS, (".*",))
