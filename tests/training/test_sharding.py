"""Mesh and placement, on eight forced CPU devices."""

import jax
import jax.numpy as jnp

from avs_jax import devices
from avs_jax.training import sharding


def test_large_arrays_are_split_over_fsdp_and_small_ones_copied():
    mesh = devices.make_mesh(fsdp=4)
    shapes = {
        "large": jax.ShapeDtypeStruct((3, 256, 128), jnp.float32),
        "odd": jax.ShapeDtypeStruct((3, 255, 129), jnp.float32),
        "small": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    placed = sharding.state_shardings(shapes, mesh)
    assert placed["large"].spec == jax.P(None, "fsdp")
    assert placed["odd"].spec == placed["small"].spec == jax.P()


def test_rules_come_before_the_default():
    mesh = devices.make_mesh(fsdp=4)
    shapes = {"head": {"kernel": jax.ShapeDtypeStruct((256, 128), jnp.float32)}}
    placed = sharding.state_shardings(shapes, mesh, [("head/kernel", (None, "fsdp"))])
    assert placed["head"]["kernel"].spec == jax.P(None, "fsdp")
