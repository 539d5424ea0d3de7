"""A run's model, read without training it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.weights import trained
from tests.training.small_run import make_config, make_state, overwrite, same, save_two

# Orbax abandons coroutines when a file that it reads is damaged, and they complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def saved(tmp_path):
    return save_two(tmp_path)


def test_a_config_that_still_says_freeze_audio_is_read():
    old = trained.build_model(make_config(freeze_audio=True, remat=False))
    assert old == trained.build_model(make_config())


def test_load_model_without_validation_takes_the_latest(saved):
    assert trained.load_model(str(saved)).step == 4


def test_load_model_by_step(saved):
    assert same(trained.load_model(str(saved), "2").variables["params"], make_state(2).params)


def test_load_model_falls_back_and_says_so(saved):
    overwrite(saved / "checkpoints" / "4" / "model")
    said = []
    assert trained.load_model(str(saved), "latest", said.append).step == 2
    assert "checkpoint checkpoints/4 cannot be read" in said[0], said


def test_load_model_reads_a_checkpoint_whose_optimiser_is_lost(saved):
    overwrite(saved / "checkpoints" / "4" / "optimizer")
    said = []
    assert trained.load_model(str(saved), "latest", said.append).step == 4
    assert said == []


def test_load_model_of_a_missing_step_names_those_there_are(saved):
    with pytest.raises(errors.NotFoundError, match="there are: best, latest, 2, 4"):
        trained.load_model(str(saved), "3")


def test_load_model_of_an_empty_folder(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no checkpoint under"):
        trained.load_model(str(tmp_path))


def test_checksum_sees_a_single_bit_and_not_the_sharding():
    x = np.arange(64, dtype=np.float32)
    y = x.copy()
    y.view(np.uint32)[17] ^= 1
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    assert trained.checksums({"x": jnp.asarray(x)}) == trained.checksums({"x": sharded})
    assert trained.checksums({"x": jnp.asarray(x)}) != trained.checksums({"x": y})
