"""What a stream flows through: a ring of its sound, and a place for its newest picture."""

import itertools
import threading

import numpy as np

from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.live_reading import Picture
from avs_jax.types import Float

_GAP = round(0.03 * SAMPLE_RATE)  # by which stamps may stray from samples, see `media.sound`


class SoundRing:
    """The last seconds of a sound, by the time at which it is heard."""

    def __init__(self, seconds: int | float):
        self._samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        self._end = 0  # of what was written, in samples from time 0
        self._lock = threading.Lock()

    @property
    def end(self) -> int:
        """The sample after the last one."""
        return self._end

    def write(self, moment: int | float, samples: Float[np.ndarray, "s"]) -> None:
        """Adds what is heard from `moment` on; a gap is silence, what is there already stays."""
        with self._lock:
            begin = round(moment * SAMPLE_RATE)
            if abs(begin - self._end) <= _GAP:
                begin = self._end
            samples = samples[max(0, self._end - begin) :]
            begin = max(begin, self._end)
            self._fill(self._end, min(begin - self._end, len(self._samples)), None)
            self._fill(begin, len(samples), samples)
            self._end = begin + len(samples)

    def _fill(self, begin: int, count: int, samples: np.ndarray | None) -> None:
        size = len(self._samples)
        if samples is not None and count > size:
            begin, samples, count = begin + count - size, samples[-size:], size
        first = min(count, size - begin % size)
        for at, part in ((begin % size, slice(0, first)), (0, slice(first, count))):
            length = part.stop - part.start
            self._samples[at : at + length] = 0.0 if samples is None else samples[part]

    def window(self, end: int, length: int) -> Float[np.ndarray, "s"]:
        """The samples end - length ... end; silence where there are none, or no longer."""
        with self._lock:
            window = np.zeros(length, np.float32)
            size = len(self._samples)
            begin = max(end - length, self._end - size, 0)
            last = min(end, self._end)
            if last > begin:
                places = np.arange(begin, last) % size
                window[begin - end + length : last - end + length] = self._samples[places]
            return window


class Newest:
    """A place for one picture, which a newer one takes from it."""

    def __init__(self):
        self._changed = threading.Condition()
        self._picture: Picture | None = None
        self._is_over = False
        self._taken = itertools.count()
        self.dropped = 0

    def put(self, picture: Picture) -> None:
        with self._changed:
            self.dropped += self._picture is not None
            self._picture = picture
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def take(self) -> tuple[int, Picture] | None:
        """Waits for a picture -> (how many were taken before, it); None when no more comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._picture is not None or self._is_over)
            if self._picture is None:
                return None
            picture, self._picture = self._picture, None
            return next(self._taken), picture
