"""Mesh and placement, on eight forced CPU devices."""

import jax
import jax.numpy as jnp
import pytest

from avs_jax import errors, sharding


def test_batch_not_divisible_by_devices():
    mesh = sharding.make_mesh()
    with pytest.raises(errors.BadValueError, match="batch_size=6 is not divisible by the 8 dev"):
        sharding.check_batch_size(6, mesh)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(errors.BadValueError, match="fsdp=3 does not divide the 8 devices"):
        sharding.make_mesh(fsdp=3)


def test_large_arrays_are_split_over_fsdp_and_small_ones_copied():
    mesh = sharding.make_mesh(fsdp=4)
    shapes = {
        "large": jax.ShapeDtypeStruct((3, 256, 128), jnp.float32),
        "odd": jax.ShapeDtypeStruct((3, 255, 129), jnp.float32),
        "small": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    placed = sharding.state_shardings(shapes, mesh)
    assert placed["large"].spec == jax.P(None, "fsdp")
    assert placed["odd"].spec == placed["small"].spec == jax.P()


def test_rules_come_before_the_default():
    mesh = sharding.make_mesh(fsdp=4)
    shapes = {"head": {"kernel": jax.ShapeDtypeStruct((256, 128), jnp.float32)}}
    placed = sharding.state_shardings(shapes, mesh, [("head/kernel", (None, "fsdp"))])
    assert placed["head"]["kernel"].spec == jax.P(None, "fsdp")


def test_clips_are_split_over_all_devices():
    mesh = sharding.make_mesh(fsdp=2)
    x = jax.device_put(jnp.zeros((16, 3)), sharding.batch_sharding(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}
