"""A run's model, read without training it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from avs_jax import errors
from avs_jax.training.checkpoints import Checkpoints
from avs_jax.weights import trained
from tests.training.small_run import (
    make_config,
    make_iterator,
    make_state,
    overwrite,
    same,
    save_two,
)

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


def save_best(workdir, step):
    checkpoints = Checkpoints(str(workdir), make_config())
    checkpoints.save_if_best(make_state(step), "validation/miou", 0.5)
    checkpoints.close()


def test_the_best_model_of_another_run_is_not_taken(saved):
    save_best(saved, 3)
    said = []
    assert trained.load_model(str(saved), "best", said.append).step == 4
    assert said == ["best/3 is of another run than checkpoints/ and is not taken."]
    with pytest.raises(errors.NotFoundError, match="there are: best, latest, 2, 4"):
        trained.load_model(str(saved), "3", said.append)


@pytest.mark.parametrize("dim, step", [(8, 3), (16, 4)])
def test_of_runs_without_a_name_the_best_is_taken_where_the_models_are_alike(saved, dim, step):
    save_best(saved, 3)
    for path in saved.glob("*/*/meta/metadata"):
        meta = json.loads(path.read_text())
        del meta["run"]
        if "best" in meta:
            meta["config"]["model"]["dim"] = dim
        path.write_text(json.dumps(meta))
    assert trained.load_model(str(saved), "best", [].append).step == step


def test_a_best_model_alone_is_taken(tmp_path):
    save_best(tmp_path, 3)
    assert trained.load_model(str(tmp_path)).step == 3


def save_with_average(workdir, ema):
    """One checkpoint of a run with running averages; `ema` makes them from the state."""
    config = make_config()
    config.ema_decay = 0.5
    train_state = make_state(2)
    train_state = train_state.replace(ema=ema(train_state))
    checkpoints = Checkpoints(str(workdir), config)
    checkpoints.save(train_state, make_iterator())
    checkpoints.close()
    return train_state


def scale(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)


def test_averages_take_the_place_of_what_they_average(tmp_path):
    def ema(train_state):  # of what learns: not the sound backbone
        trees = {"params": train_state.params, "batch_stats": train_state.batch_stats}
        learning = {
            name: {part: x for part, x in tree.items() if part != "audio_backbone"}
            for name, tree in trees.items()
        }
        return scale(learning, 2.0)

    saved = save_with_average(tmp_path, ema)
    loaded = trained.load_model(str(tmp_path)).variables
    for kind, tree in (("params", saved.params), ("batch_stats", saved.batch_stats)):
        assert loaded[kind].keys() == tree.keys()
        for part, values in tree.items():
            assert same(loaded[kind][part], scale(values, 1.0 if part == "audio_backbone" else 2.0))


def test_an_older_run_s_average_of_all_parameters_is_read(tmp_path):
    saved = save_with_average(tmp_path, lambda train_state: scale(train_state.params, 2.0))
    loaded = trained.load_model(str(tmp_path)).variables
    assert same(loaded["params"], scale(saved.params, 2.0))
    assert same(loaded["batch_stats"], saved.batch_stats)


def test_checksum_sees_a_single_bit_and_not_the_sharding():
    x = np.arange(64, dtype=np.float32)
    y = x.copy()
    y.view(np.uint32)[17] ^= 1
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    assert trained.checksums({"x": jnp.asarray(x)}) == trained.checksums({"x": sharded})
    assert trained.checksums({"x": jnp.asarray(x)}) != trained.checksums({"x": y})


def test_checksums_are_those_that_older_versions_saved():
    """The numbers were computed by the version that summed on the devices."""
    numbers = np.random.default_rng(0)
    tree = {
        "a": jnp.asarray(numbers.normal(size=(64, 6, 10)).astype(np.float32)),
        "b": jnp.asarray(numbers.normal(size=7).astype(np.float32)).astype(jnp.bfloat16),
        "c": jnp.asarray(numbers.normal(size=(5, 3)) > 0),
        "d": jnp.int32(-5),
        "e": jnp.zeros((0, 3)),
    }
    expected = {"a": 516175612, "b": 2202161, "c": 123, "d": 4294967291, "e": 0}
    assert trained.checksums(tree) == expected
    assert trained.checksums(jax.tree.map(np.asarray, tree)) == expected


@pytest.mark.parametrize("axes", [("x",), (None, "y", "x"), ("y", None, "x"), (("x", "y"),)])
def test_sharding_does_not_change_a_checksum(axes):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    whole = np.random.default_rng(1).normal(size=(8, 4, 6)).astype(np.float32)
    sharded = jax.device_put(whole, jax.NamedSharding(mesh, jax.P(*axes)))
    assert trained.checksums({"a": sharded}) == trained.checksums({"a": whole})


def test_checksums_of_a_large_state_need_no_compilation():
    """One program over all arrays took 27 s for CATR, before its first checkpoint."""
    tree = {f"array{i}": jnp.zeros((3, i + 1)) for i in range(50)}
    compiled = []

    def listen(event, seconds, **_):
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        trained.checksums(tree)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
