"""SIGTERM: a step is finished, an evaluation is left."""

import signal
import subprocess
import sys
import time

import pytest

from avs_jax.training.stopping import Stop, StoppedError


def test_items_end_once_it_is_set():
    stop, seen = Stop(), []
    with pytest.raises(StoppedError):
        for item in stop.until_set(range(5)):
            seen.append(item)
            if item == 1:
                stop.set()
    assert seen == [0, 1]
    assert list(Stop().until_set(range(3))) == [0, 1, 2]


HANGS = """
import hashlib
from avs_jax.training.stopping import Stop
stop = Stop()
stop.listen()
with stop.leave_within_seconds({finish}):
    print("in C++", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as XLA when it compiles
print("it came back")
"""


@pytest.mark.parametrize(
    "finish, code, said",
    [
        ("lambda: print('finished', flush=True)", 0, "finished"),
        ("lambda: 1 / 0", 1, "ZeroDivision"),
    ],
    ids=["finishes", "fails"],
)
def test_what_does_not_react_is_left_within_seconds(finish, code, said):
    command = [sys.executable, "-c", HANGS.format(finish=finish)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **pipe)
    assert process.stdout.readline() == "in C++\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == code
    assert said in output and "it came back" not in output
