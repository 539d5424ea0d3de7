"""What befalls a train program: killed and gone on elsewhere, stopped, a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from avs_jax import errors, train
from avs_jax.weights import trained
from tests.test_train import ROOT, data_dir, finish, losses, run  # noqa: F401 (fixtures)


def clips(workdir):
    """{step: ids of its clips}; a step that was done again had the same ones."""
    found = {}
    for line in (workdir / "clips.jsonl").read_text().splitlines():
        step, ids = json.loads(line)
        assert found.setdefault(step, ids) == ids
    return found


@pytest.mark.slow
def test_killed_in_mid_epoch_it_goes_on_with_other_readers_and_devices(
    run,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    fields = {"checkpoint_every": 1, "eval.every": 100, "batch_size": 6}  # of 16 clips
    fields |= {"program": "tests.training.told_train", "steps": 5}
    finish(run(tmp_path / "whole", **fields))
    parts = tmp_path / "parts"
    for kill_at, workers, devices in ((2, 1, 1), (3, 0, 2), (5, 2, 1)):
        monkeypatch.setenv("KILL_AT", str(kill_at))
        changed = fields | {"data.num_workers": workers, "devices": devices}
        finish(run(parts, **changed), -signal.SIGKILL)
    monkeypatch.delenv("KILL_AT")
    output = finish(run(parts, **(fields | {"data.num_workers": 1, "devices": 2})))
    assert "going on at step 4" in output
    assert clips(parts) == clips(tmp_path / "whole")
    expected = losses(tmp_path / "whole")
    found = losses(parts)
    assert sorted(found) == sorted(expected) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([found[i] for i in expected], list(expected.values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lasts", "hangs"])
def test_sigterm_in_an_evaluation_ends_it_within_seconds(
    run,  # noqa: F811
    tmp_path,
    monkeypatch,
    how,
):
    monkeypatch.setenv("KILLED_TRAIN", how)
    fields = {"program": "tests.training.killed_train", "checkpoint_every": 100}
    process = run(tmp_path, steps=100, **fields)
    while "evaluating" not in (line := process.stdout.readline()):
        assert line, "the run ended"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert time.monotonic() - began < 5
    assert "SIGTERM" in output and "the same command goes on" in output
    assert os.listdir(tmp_path / "checkpoints") == ["4"]
    assert os.listdir(tmp_path / "best") == []
    assert {"lock.json", ".writable"}.isdisjoint(os.listdir(tmp_path))
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


def test_help_ends_with_0():
    command = [sys.executable, "-m", "avs_jax.train", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "--workdir" in ended.stdout


@pytest.mark.parametrize("name", ["checkpoints", "best", "broken", "tensorboard"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(errors.BadValueError, match=f"{name} is a file, wanted a folder of a run"):
        train.make_workdir(str(tmp_path))


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "lock.json"])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(errors.BadValueError, match=f"{name} is a folder, wanted a file of a run"):
        train.make_workdir(str(tmp_path))


@pytest.mark.parametrize("name", ["checkpoints", "best"])
def test_a_file_in_place_of_checkpoints_is_named_when_a_model_is_read(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(errors.BadValueError, match=f"{name} is a file, wanted a folder of check"):
        trained.load_model(str(tmp_path))


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)` -> a folder on a disk of that size."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a disk of its own needs root")
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        return folder

    yield make
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096 * 30, 1_500_000])  # for the log alone; for one checkpoint
def test_a_full_disk_is_told_in_the_last_line(run, small_disk, size):  # noqa: F811
    workdir = small_disk(size)
    output = finish(run(workdir, steps=500, **{"eval.every": 1000}), code=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: --workdir {workdir}: no space left on device; make room.")
