"""The mesh and batches on it, on eight forced CPU devices."""

import jax
import jax.numpy as jnp
import pytest

from avs_jax import devices, errors


def test_batch_not_divisible_by_devices():
    mesh = devices.make_mesh()
    with pytest.raises(errors.BadValueError, match="batch_size=6 is not divisible by the 8 dev"):
        devices.check_batch_size(6, mesh)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(errors.BadValueError, match="fsdp=3 does not divide the 8 devices"):
        devices.make_mesh(fsdp=3)


def test_clips_are_split_over_all_devices():
    mesh = devices.make_mesh(fsdp=2)
    x = jax.device_put(jnp.zeros((16, 3)), devices.batch_sharding(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}
