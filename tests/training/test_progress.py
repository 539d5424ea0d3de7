"""What a run tells while it trains: steps that are done, not those that were sent off."""

import json

import numpy as np
import pytest

from avs_jax.training.logs import Logs
from avs_jax.training.progress import MAX_IN_FLIGHT, Progress


class Device:
    """Steps are done when somebody waits for them, in order; or at once if it is `idle`."""

    def __init__(self, idle=False):
        self.idle = idle
        self.done = []

    def step(self, number):
        return Token(self, number)


class Token:
    def __init__(self, device, number):
        self.device, self.number = device, number

    def is_ready(self):
        return self.device.idle

    def block_until_ready(self):
        self.device.done.append(self.number)
        return self


@pytest.fixture
def logs(tmp_path):
    logs = Logs(tmp_path)
    yield logs
    logs.close()


def make_progress(logs, start=0, **more):
    return Progress(logs, start=start, steps=50, batch_size=4, rates=np.arange(50.0), **more)


def totals(*losses, bad_step=-1):
    return {
        "sums": {"loss": np.float32(sum(losses))},
        "count": np.int32(len(losses)),
        "bad_step": np.int32(bad_step),
    }


def lines(logs):
    return [json.loads(x) for x in logs.path.read_text().splitlines()] if logs.path.exists() else []


def test_the_bar_counts_steps_that_are_done_not_those_sent_off(logs):
    device, progress = Device(), make_progress(logs, start=10)
    for step in range(11, 21):
        progress.dispatched(device.step(step))
    assert progress.finished == progress._bar.n == 20 - MAX_IN_FLIGHT
    assert device.done == list(range(11, 21 - MAX_IN_FLIGHT))
    progress.wait()
    assert progress.finished == progress._bar.n == 20
    progress.close()


def test_nobody_waits_for_steps_that_are_done(logs):
    device, progress = Device(idle=True), make_progress(logs)
    for step in (1, 2):
        progress.dispatched(device.step(step))
    assert progress.finished == progress._bar.n == 2
    progress.close()


def test_figures_are_read_when_their_steps_are_done_and_not_waited_for(logs):
    device, progress = Device(), make_progress(logs)
    for step in range(1, 6):
        if step == 5:
            progress.end_interval(step, totals(5.0, 4.0, 3.0, 2.0, 1.0))
        progress.dispatched(device.step(step))
    assert device.done == [1, 2]  # no stop at the log
    assert lines(logs) == []
    for step in (6, 7):
        progress.dispatched(device.step(step))
    assert lines(logs) == []
    progress.dispatched(device.step(8))
    (line,) = lines(logs)
    assert (line["step"], line["train/loss"], line["train/learning_rate"]) == (5, 3.0, 4.0)
    progress.close()


def test_at_a_pause_all_figures_are_there(logs):
    device, progress = Device(), make_progress(logs, seconds_before=100.0)
    for step in (1, 2):
        progress.end_interval(step, totals(float(step)))
        progress.dispatched(device.step(step))
    progress.wait()
    assert [(x["step"], x["train/loss"]) for x in lines(logs)] == [(1, 1.0), (2, 2.0)]
    assert lines(logs)[1]["train/seconds"] > 100
    progress.close()


def test_the_first_bad_step_is_told_and_its_interval_not_logged(logs):
    device, progress = Device(), make_progress(logs)
    progress.end_interval(1, totals(1.0))
    progress.dispatched(device.step(1))
    progress.end_interval(3, totals(np.nan, np.nan, bad_step=2))
    for step in (2, 3):
        progress.dispatched(device.step(step))
    assert progress.bad_step is None  # not known yet
    progress.wait()
    assert progress.bad_step == 2
    assert [x["step"] for x in lines(logs)] == [1]
    progress.close()
