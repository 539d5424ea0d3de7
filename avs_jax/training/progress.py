"""What a run tells while it trains: a bar that moves with finished steps, and figures of intervals.

JAX dispatches steps asynchronously: the host runs ahead of the devices. It is kept a few steps
ahead, so that they are never idle and their memory not full of batches; and it waits for nothing
else: figures are read when the steps they are of are known to be finished.
"""

import collections
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from avs_jax.training.logs import Logs
from avs_jax.types import PyTree

# Enough that the devices always have a next step; each one more is a batch more on them.
MAX_IN_FLIGHT = 3


class _Interval(NamedTuple):
    last_step: int
    totals: PyTree


class Progress:
    """Follows a run's steps from `start` to `steps`.

    Attributes:
      finished: the last step that the devices are known to have finished.
      bad_step: the first step whose loss or gradient was no finite number, or None.
    """

    def __init__(
        self,
        logs: Logs,
        *,
        start: int,
        steps: int,
        batch_size: int,
        rates: np.ndarray,
        seconds_before: float = 0.0,
    ):
        """rates: the learning rate of each step, from the first on. batch_size: clips a step."""
        self.finished = start
        self.bad_step: int | None = None
        self._logs = logs
        self._batch_size = batch_size
        self._rates = rates
        self._seconds_before = seconds_before
        self._in_flight: collections.deque[Any] = collections.deque()
        self._intervals: collections.deque[_Interval] = collections.deque()
        self._began = self._told_at = time.monotonic()
        self._told_step = start
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not logs.main, dynamic_ncols=True
        )

    def dispatched(self, token: Any) -> None:
        """A step was dispatched: `token` is one of its results, not donated to the next step.

        Returns at once, unless more than MAX_IN_FLIGHT steps are not finished.
        """
        self._in_flight.append(token)
        while len(self._in_flight) > MAX_IN_FLIGHT or (
            self._in_flight and self._in_flight[0].is_ready()
        ):
            self._finish_one()

    def end_interval(self, step: int, totals: PyTree) -> None:
        """`totals` (see `state.count_steps`) are of all steps since the last call, up to `step`.

        To be called before that step's `dispatched`; logged once the step is finished.
        """
        self._intervals.append(_Interval(step, totals))

    def wait(self) -> None:
        """Returns when the devices are idle, with all intervals logged."""
        while self._in_flight:
            self._finish_one()

    def resume(self) -> None:
        """After a pause (an evaluation, a checkpoint), which is not counted as training."""
        self._told_at = time.monotonic()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    def _finish_one(self) -> None:
        jax.block_until_ready(self._in_flight.popleft())
        self.finished += 1
        self._bar.update()
        if self._intervals and self._intervals[0].last_step == self.finished:
            self._tell(*self._intervals.popleft())

    def _tell(self, step: int, totals: PyTree) -> None:
        numbers = jax.device_get(totals)
        if numbers["bad_step"] >= 0:
            self.bad_step = self.bad_step or int(numbers["bad_step"])
            return
        now = time.monotonic()
        clips = (step - self._told_step) * self._batch_size
        figures = {f"train/{k}": v / numbers["count"] for k, v in numbers["sums"].items()}
        figures["train/learning_rate"] = self._rates[step - 1]
        figures["train/clips_per_second"] = clips / max(now - self._told_at, 1e-9)
        figures["train/seconds"] = self._seconds_before + now - self._began
        self._logs.write(step, figures)
        self._bar.set_postfix_str(
            f"loss {figures['train/loss']:.4f}, {figures['train/clips_per_second']:.1f} clips/s"
        )
        self._told_at, self._told_step = now, step
