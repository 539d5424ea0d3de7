"""The mesh and batches on it, on eight forced CPU devices."""

import os
import platform
import subprocess
import sys

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


def test_a_compile_cache_that_was_moved_is_still_hit(tmp_path):
    program = (
        "import jax, jax.numpy as jnp\n"
        "from avs_jax import devices\n"
        "devices.start_jax()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))\n"
        "print(sum(name == '/jax/compilation_cache/cache_hits' for name in hits))\n"
    )

    def hits(cache):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        command = [sys.executable, "-c", program]
        return int(subprocess.run(command, env=environment, stdout=-1, check=True).stdout)

    assert hits(tmp_path / "here") == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert hits(tmp_path / "there") > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back by themselves")
def test_memory_that_is_free_is_given_back():
    program = (
        "from avs_jax import devices\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "blocks = [bytes(5000) for _ in range(20_000)]\n"
        "last = blocks[-1]\n"  # above all the others: they are a hole
        "del blocks\n"
        "before = resident()\n"
        "devices.give_back_memory()\n"
        "print(before - resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) > 80_000_000, done.stderr


def test_quiet_libraries_hides_a_closed_loop_and_no_other_error():
    program = (
        "from avs_jax import devices\n"
        "class Raises:\n"
        "    def __init__(self, text): self.text = text\n"
        "    def __del__(self): raise RuntimeError(self.text)\n"
        "devices.quiet_libraries()\n"
        "Raises('Event loop is closed')\n"  # as TensorStore does
        "Raises('something else')\n"
        "raise RuntimeError('Event loop is closed')\n"
    )
    told = subprocess.run([sys.executable, "-c", program], stderr=-1, text=True).stderr
    assert "something else" in told and told.count("Traceback") == 1
