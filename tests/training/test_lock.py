"""A folder's lock: one that lives is respected, one that died is taken over."""

import json
import os
import subprocess
import sys
import time

import pytest
from etils import epath

from avs_jax import errors
from avs_jax.training import lock
from avs_jax.training.lock import Lock

HOLD = """
import sys, time
from avs_jax.training.lock import Lock
held = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder's lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        yield child
        child.kill()


def test_a_folder_in_use_is_refused_at_once_with_the_name_of_the_holder(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(errors.BadValueError, match=f"in use by process {holder.pid} on ") as caught:
        Lock(tmp_path)
    assert time.monotonic() - began < 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder, reaped):
    holder.kill()
    if reaped:
        holder.wait()
    else:  # a zombie, whose parent did not look yet
        while lock._started_at(holder.pid):
            time.sleep(0.01)
    said, began = [], time.monotonic()
    Lock(tmp_path, said.append).release()
    assert time.monotonic() - began < 2
    assert f"process {holder.pid} on" in said[0] and "is dead" in said[0]
    assert os.listdir(tmp_path) == []


def as_from_elsewhere(folder):
    """As if the lock were another machine's, whose processes cannot be looked for from here."""
    path = folder / "lock.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "other"}))


def test_of_another_machine_a_lock_that_changes_lives(tmp_path):
    held = Lock(tmp_path, beat=0.1)
    held._own["machine"] = "other"
    time.sleep(0.3)
    with pytest.raises(errors.BadValueError, match="in use by process"):
        Lock(tmp_path, [].append, beat=0.1, patience=20.0)
    held.release()
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_of_another_machine_a_lock_that_does_not_change_is_dead(tmp_path, text):
    held = Lock(tmp_path)
    as_from_elsewhere(tmp_path)
    if text is not None:
        (tmp_path / "lock.json").write_text(text)
    said = []
    new = Lock(tmp_path, said.append, beat=0.1, patience=0.5)
    assert "is dead; going on in its place" in said[-1]
    held.release()  # leaves the new one's alone
    assert (tmp_path / "lock.json").exists()
    new.release()


def test_a_run_whose_lock_was_taken_over_learns_it(tmp_path):
    slept = Lock(tmp_path, beat=0.3)
    as_from_elsewhere(tmp_path)
    slept._own["machine"] = "other"
    other = json.loads((tmp_path / "lock.json").read_text()) | {"id": "x", "pid": 77}
    (tmp_path / "lock.json").write_text(json.dumps(other))
    slept.check()
    slept._thread.join(5)
    with pytest.raises(errors.BadValueError, match="taken over by process 77 on"):
        slept.check()


def test_a_lock_in_a_bucket(bucket):
    held = Lock(epath.Path(bucket) / "run")
    with pytest.raises(errors.BadValueError, match="in use by process"):
        Lock(epath.Path(bucket) / "run")
    held.release()
    assert not (epath.Path(bucket) / "run" / "lock.json").exists()
