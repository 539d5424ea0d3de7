"""A trace of a few steps: what host and devices do when, for TensorBoard or ui.perfetto.dev."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import jax

# The first steps are not like those that follow: buffers are empty, memory is taken.
_FIRST = 3


class Profile:
    """Traces `steps` steps of a run into `folder`/plugins/profile/, where TensorBoard looks.

    The same folder gets perfetto_trace.json.gz, which https://ui.perfetto.dev opens.
    """

    def __init__(
        self, folder: str | os.PathLike, start: int, steps: int, say: Callable[[str], None]
    ):
        """start: steps that were done before; none is traced if steps is 0."""
        self._folder = Path(folder)
        self._say = say
        self._first, self._last = start + _FIRST, start + _FIRST + steps - 1
        self._steps = steps
        self._is_running = False

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """To dispatch that step in: names it in the trace, which starts with the first of them."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._is_running = True
        if not self._is_running:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def is_due(self, step: int, last: bool) -> bool:
        """Whether `stop` is due after this step: the devices have to be waited for."""
        return self._is_running and (step == self._last or last)

    def stop(self) -> None:
        """Writes the trace; call it once the devices have finished the last step."""
        jax.profiler.stop_trace()
        self._is_running = False
        self._say(
            f"{self._steps} steps are traced in {self._folder}/plugins/profile: see them with "
            "tensorboard --logdir (and pip install xprof), or perfetto_trace.json.gz there on "
            "https://ui.perfetto.dev"
        )
