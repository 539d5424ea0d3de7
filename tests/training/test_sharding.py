"""Mesh and placement, on eight forced CPU devices."""

import jax
import jax.numpy as jnp
import pytest

from avs_jax import devices, errors
from avs_jax.training import sharding

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
