"""The train program with an evaluation that does not come to its end.

KILLED_TRAIN=dies    it is killed there: as by `kill -9`, or a machine that goes
KILLED_TRAIN=lasts   batch after batch, for ever
KILLED_TRAIN=hangs   in one batch, in C++: as XLA when it compiles
"""

import itertools
import os
import pathlib
import signal
import time

import numpy as np
from absl import app

from avs_jax import train
from avs_jax.scoring.evaluators import Evaluator


def evaluate(evaluator, variables, track=iter):
    saved = pathlib.Path(train._WORKDIR.value) / "checkpoints" / "4"
    while not saved.exists():  # it is written while the evaluation runs
        time.sleep(0.01)
    if os.environ["KILLED_TRAIN"] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    print("evaluating", flush=True)
    if os.environ["KILLED_TRAIN"] == "hangs":
        np.linalg.eig(np.random.default_rng(0).normal(size=(6000, 6000)))
    for _ in track(itertools.repeat(None)):
        time.sleep(0.1)


Evaluator.run = evaluate

if __name__ == "__main__":
    app.run(train.main, flags_parser=train.parse_flags)
