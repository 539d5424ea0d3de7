"""What befalls a train program: killed and gone on elsewhere, stopped, a full disk."""

import functools
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from absl import app

from avs_jax import errors, train
from avs_jax.weights import trained
from tests.data.tiny import build_tiny
from tests.faults.runs import finish, read_clips, read_log, start


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(workdir, steps, ...)` -> a started train program, see `start`."""
    data_dir = build_tiny(tmp_path_factory.mktemp("data"), clips=(20, 4, 4))
    return functools.partial(start, data_dir=data_dir)


@pytest.mark.slow
def test_killed_in_mid_epoch_it_goes_on_with_other_readers_and_devices(run, tmp_path):
    fields = {"checkpoint_every": 1, "eval.every": 100, "batch_size": 8}  # of 20 clips
    fields |= {"program": "tests.training.told_train", "steps": 5}
    finish(run(tmp_path / "whole", **fields))
    parts = tmp_path / "parts"
    killed = {"data.num_workers": 2, "environment": {"KILL_AT": "4"}}
    finish(run(parts, **fields, **killed), -signal.SIGKILL)
    output = finish(run(parts, devices=2, **fields, **{"data.num_workers": 1}))
    assert "going on at step 3" in output
    assert read_clips(parts) == read_clips(tmp_path / "whole")
    expected, found = (read_log(x, "train/loss") for x in (tmp_path / "whole", parts))
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lasts", "hangs"])
def test_sigterm_in_an_evaluation_ends_it_within_seconds(run, tmp_path, how):
    process = run(
        tmp_path,
        steps=100,
        program="tests.training.killed_train",
        environment={"KILLED_TRAIN": how},
        **{"checkpoint_every": 100, "eval.every": 4},
    )
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
    assert [step for step, _ in read_log(tmp_path, "train/loss")] == [1, 2, 3, 4]


def test_help_ends_with_0():
    app.define_help_flags()  # as app.run does
    with pytest.raises(SystemExit) as ended:
        train.parse_flags(["train", "--help"])
    assert ended.value.code == 0


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
def test_a_full_disk_is_told_in_the_last_line(run, small_disk):
    workdir = small_disk(160_000)  # room for a checkpoint
    output = finish(run(workdir, steps=500, **{"eval.every": 1000}), code=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: --workdir {workdir}: no space left on device; make room.")
    assert "Traceback" not in output
