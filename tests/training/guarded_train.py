"""The train program, whose loop dies at an implicit transfer between host and devices.

From the first batch on, but for evaluations and checkpoints. Each would make the host wait until
the devices are idle.
"""

import jax
from absl import app

from avs_jax import train
from avs_jax.data import pipeline
from avs_jax.training.progress import Progress

to_device, wait, resume = pipeline.to_device, Progress.wait, Progress.resume


def guard(level):
    jax.config.update("jax_transfer_guard", level)


def guarded(*arguments):
    if not guarded.pausing:
        guard("disallow")
    return to_device(*arguments)


def pause(self):
    wait(self)
    guarded.pausing = True
    guard("allow")


def go_on(self):
    resume(self)
    guarded.pausing = False
    print("steps without an implicit transfer:", self.finished, flush=True)


guarded.pausing = False
pipeline.to_device, Progress.wait, Progress.resume = guarded, pause, go_on

if __name__ == "__main__":
    app.run(train.main, flags_parser=train.parse_flags)
