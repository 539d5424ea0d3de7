"""Checkpoints: exact, checked, and with a way back when the newest is damaged."""

import gc

import pytest

from avs_jax import errors
from avs_jax.training.checkpoints import Checkpoints
from avs_jax.weights import trained
from tests.training.small_run import (
    delete,
    empty,
    make_config,
    make_iterator,
    make_state,
    overwrite,
    same,
    save_two,
    truncate,
)

# Orbax abandons coroutines when a file that it reads is damaged, and they complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def saved(tmp_path):
    return save_two(tmp_path)


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


def test_the_best_ones_are_kept_by_value_and_the_best_of_them_is_loaded(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), make_config(), keep_best=2)
    values = {1: 0.5, 2: 0.4, 3: 0.9, 4: 0.3, 5: 0.6, 6: 0.6}
    kept = [
        step
        for step, value in values.items()
        if checkpoints.save_if_best(make_state(step), "validation/miou", value)
    ]
    assert checkpoints.best_step == 3
    checkpoints.close()
    assert kept == [1, 2, 3, 5]
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["3", "5"]
    assert trained.load_model(str(tmp_path)).step == 3  # not 5, the latest


def test_a_run_that_goes_on_knows_what_its_best_was(tmp_path):
    for step, value, expected in ((1, 0.5, True), (2, 0.4, False), (3, 0.6, True)):
        checkpoints = Checkpoints(str(tmp_path), make_config())
        assert checkpoints.save_if_best(make_state(step), "validation/miou", value) == expected
        checkpoints.close()
    assert checkpoints.best_step == 3
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["3"]


def test_best_is_kept_by_value(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), make_config())
    kept = [
        checkpoints.save_if_best(make_state(step), "validation/miou", value)
        for step, value in ((1, 0.5), (2, 0.4), (3, 0.6))
    ]
    checkpoints.close()
    assert kept == [True, False, True]
    loaded = trained.load_model(str(tmp_path))
    assert loaded.step == 3
    assert same(loaded.variables["params"], make_state(3).params)


def save_best(workdir, step, value, **fields):
    checkpoints = Checkpoints(str(workdir), make_config(**fields))
    checkpoints.save_if_best(make_state(step), "validation/miou", value)
    checkpoints.close()


def test_the_best_of_an_earlier_run_is_set_aside_when_nothing_is_restored(tmp_path):
    save_best(tmp_path, 3, 0.9)
    (tmp_path / "metrics.jsonl").write_text("figures\n")
    said = []
    checkpoints = Checkpoints(str(tmp_path), make_config(), say=said.append)
    assert checkpoints.restore(make_state(0), make_iterator()) is None
    assert checkpoints.best_step is None
    assert checkpoints.save_if_best(make_state(1), "validation/miou", 0.1)  # of a worse run
    checkpoints.close()
    (before,) = tmp_path.glob("before-*")
    assert said == [
        "best/ holds an earlier model: there is no checkpoint to go on from; it is kept as "
        f"{before / 'best'}."
    ]
    assert (before / "metrics.jsonl").read_text() == "figures\n"
    assert trained.load_model(str(before)).step == 3  # of use as it was
    assert trained.load_model(str(tmp_path)).step == 1


def test_the_best_of_another_run_is_set_aside_when_a_run_goes_on(tmp_path, saved):
    save_best(tmp_path, 5, 0.9)
    restored, _ = restore(saved)
    assert restored.step == 4
    assert list((tmp_path / "best").iterdir()) == []
    (before,) = tmp_path.glob("before-*")
    assert trained.load_model(str(before)).step == 5


def test_a_run_that_goes_on_is_the_same_run(saved):
    checkpoints = Checkpoints(str(saved), make_config())
    checkpoints.restore(make_state(0), make_iterator())
    checkpoints.save_if_best(make_state(5), "validation/miou", 0.9)
    checkpoints.close()
    restore(saved)
    assert [p.name for p in (saved / "best").iterdir()] == ["5"]
    assert trained.load_model(str(saved)).step == 5
