"""A short form of the torture, which is a command of its own."""

import random

import pytest

from tests.faults import files, torture


@pytest.mark.slow
def test_a_run_killed_in_a_checkpoint_ends_as_one_that_nobody_disturbed(tmp_path):
    tortured = torture.Torture(tmp_path, seed=6, minutes=10, steps=8)
    torture.kills(tortured, 1)
    assert tortured.rows == {"SIGKILL, in a checkpoint": torture.Row(tried=1)}


@pytest.mark.slow
def test_two_processes_of_which_one_ends_go_on_as_if_none_had(tmp_path):
    tortured = torture.Torture(tmp_path, seed=6, minutes=10, steps=8)
    faults = ("one of two processes killed", "SIGTERM to one of two processes")
    torture.one_of_two(tortured, 1, faults)
    assert tortured.rows == {fault: torture.Row(tried=1) for fault in faults}


def test_what_differs_from_the_run_that_nobody_disturbed_is_told():
    row = torture.Row()
    tortured = object.__new__(torture.Torture)
    tortured.rows, tortured.began = {"x": row}, 0.0
    tortured.note("x", lost=2)
    tortured.note("x", wrong="the state differs")
    tortured.note("x")
    assert row == torture.Row(tried=3, lost=2, corrupted=1)


@pytest.mark.parametrize("how", files.DAMAGES)
def test_each_damage_befalls_one_file_of_a_kind(tmp_path, how):
    (tmp_path / "d").mkdir()
    names = [f"d/{i:032x}" for i in range(3)] + ["meta"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(range(100)))
    assert files.kinds(tmp_path) == ["d/*", "meta"]
    files.damage(tmp_path, "d/*", how, random.Random(0))
    found = [p.read_bytes() if p.exists() else None for p in map(tmp_path.joinpath, names)]
    (changed,) = [x for x in found if x != bytes(range(100))]
    sizes = {"truncated": 50, "emptied": 0, "with one bit flipped": 100, "deleted": None}
    assert (None if changed is None else len(changed)) == sizes[how]
