"""Checkpoints: exact, checked, and with a way back when the newest is damaged."""

import gc

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import checkpoint, errors, models, state
from avs_jax.checkpoint import Checkpoints

# Orbax abandons coroutines when a file that it reads is damaged, and they complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FIELDS = {
    "name": "avesformer",
    "backbone": "small_resnet",
    "audio_backbone": "audio_cnn",
    "dim": 8,
    "num_heads": 2,
    "pqg_layers": 1,
    "pqg_hidden": 8,
    "early_stages": 1,
    "late_stages": 1,
    "late_hidden": 8,
    "head_widths": (8, 8),
    "norm_groups": 4,
    "freeze_audio": False,
}


def make_config(**model):
    config = ml_collections.ConfigDict({"model": FIELDS | model, "ema_decay": None})
    config.data = {"seconds": 2, "size": 32}
    return config


def make_state(step, seed=0):
    shapes = state.init_shapes(models.get_model(**FIELDS), 2, 32)
    rng = np.random.default_rng(seed + step)
    device = jax.devices()[0]

    def fill(x):
        return jax.device_put(rng.normal(size=x.shape).astype(x.dtype), device)

    variables = jax.tree.map(fill, shapes)
    return state.TrainState(
        step=jax.device_put(jnp.int32(step), device),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state={"mu": jax.tree.map(fill, shapes["params"])},
    )


def make_iterator():
    return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset())


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.fixture
def saved(tmp_path):
    """A workdir with steps 2 and 4; the iterator had given 3 and 6 elements."""
    checkpoints, iterator = Checkpoints(str(tmp_path), make_config()), make_iterator()
    for step in (2, 4):
        for _ in range(3):
            next(iterator)
        checkpoints.save(make_state(step), iterator)
    checkpoints.close()
    return tmp_path


def restore(workdir, said=None, **model):
    checkpoints = Checkpoints(
        str(workdir), make_config(**model), say=[].append if said is None else said.append
    )
    iterator = make_iterator()
    try:
        return checkpoints.restore(make_state(0), iterator), iterator
    finally:
        checkpoints.close()
        gc.collect()  # here, where the complaints are expected, not in some later test


def test_restored_state_and_data_go_on_exactly(saved):
    restored, iterator = restore(saved)
    assert same(restored, make_state(4))
    expected = make_iterator()
    for _ in range(6):
        next(expected)
    assert next(iterator) == next(expected)


def test_no_checkpoint_is_none(tmp_path):
    restored, _ = restore(tmp_path)
    assert restored is None


def largest_file(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and "meta" not in p.parts]
    return max(files, key=lambda p: p.stat().st_size)


def truncate(step):
    path = largest_file(step)
    path.write_bytes(path.read_bytes()[:100])


def delete(step):
    largest_file(step).unlink()


def overwrite(step):
    path = largest_file(step)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(range(64))
    path.write_bytes(data)


def empty(step):
    for path in sorted(step.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("damage", [truncate, delete, overwrite, empty])
def test_damaged_latest_checkpoint_falls_back_to_the_one_before_and_says_so(saved, damage):
    damage(saved / "checkpoints" / "4")
    said = []
    restored, iterator = restore(saved, said)
    assert same(restored, make_state(2))
    assert any("checkpoint 4 cannot be read" in line for line in said)
    assert (saved / "broken" / "4").exists()  # set aside, not lost
    expected = make_iterator()
    for _ in range(3):
        next(expected)
    assert next(iterator) == next(expected)


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(saved):
    for step in (2, 4):
        truncate(saved / "checkpoints" / str(step))
    with pytest.raises(errors.BadValueError, match="none of the checkpoints"):
        restore(saved)
    assert {p.name for p in (saved / "checkpoints").iterdir()} >= {"2", "4"}  # nothing is moved


def test_an_optimiser_of_another_shape_leaves_the_checkpoints_alone(saved):
    checkpoints = Checkpoints(str(saved), make_config())
    other = make_state(0).replace(opt_state={})
    with pytest.raises(errors.BadValueError, match="none of the checkpoints"):
        checkpoints.restore(other, make_iterator())
    checkpoints.close()
    assert restore(saved)[0].step == 4


def test_a_changed_config_is_told(saved):
    config = make_config()
    config.seed = 7
    checkpoints = Checkpoints(str(saved), config)
    checkpoints.restore(make_state(0), make_iterator())
    checkpoints.close()
    assert checkpoints.changed == ["seed is 'not set' there and 7 here"]


def test_a_checkpoint_of_another_model_names_the_fields(saved):
    with pytest.raises(errors.BadValueError, match=r"model\.dim is 8 there and 16 here"):
        restore(saved, dim=16)


def test_best_is_kept_by_value(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), make_config())
    kept = [
        checkpoints.save_if_best(make_state(step), "validation/miou", value)
        for step, value in ((1, 0.5), (2, 0.4), (3, 0.6))
    ]
    checkpoints.close()
    assert kept == [True, False, True]
    loaded = checkpoint.load_model(str(tmp_path))
    assert loaded.step == 3
    assert same(loaded.variables["params"], make_state(3).params)


def test_load_model_without_validation_takes_the_latest(saved):
    assert checkpoint.load_model(str(saved)).step == 4


def test_load_model_by_step(saved):
    assert same(checkpoint.load_model(str(saved), "2").variables["params"], make_state(2).params)


def test_load_model_falls_back_and_says_so(saved):
    overwrite(saved / "checkpoints" / "4" / "model")
    said = []
    assert checkpoint.load_model(str(saved), "latest", said.append).step == 2
    assert "checkpoint checkpoints/4 cannot be read" in said[0], said


def test_load_model_reads_a_checkpoint_whose_optimiser_is_lost(saved):
    overwrite(saved / "checkpoints" / "4" / "optimizer")
    said = []
    assert checkpoint.load_model(str(saved), "latest", said.append).step == 4
    assert said == []


def test_load_model_of_a_missing_step_names_those_there_are(saved):
    with pytest.raises(errors.NotFoundError, match="there are: best, latest, 2, 4"):
        checkpoint.load_model(str(saved), "3")


def test_load_model_of_an_empty_folder(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no checkpoint under"):
        checkpoint.load_model(str(tmp_path))


def test_checksum_sees_a_single_bit_and_not_the_sharding():
    x = np.arange(64, dtype=np.float32)
    y = x.copy()
    y.view(np.uint32)[17] ^= 1
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    assert checkpoint.checksums({"x": jnp.asarray(x)}) == checkpoint.checksums({"x": sharded})
    assert checkpoint.checksums({"x": jnp.asarray(x)}) != checkpoint.checksums({"x": y})
