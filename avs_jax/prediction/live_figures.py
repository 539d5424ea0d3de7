"""What a live run is told by: how long its pictures took, how many were dropped."""

import dataclasses
import io
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

_STALL = 1.0  # seconds without a picture, or a sound, that are told
_SLOWEST = 60_000  # milliseconds: later latencies count as this


@runtime_checkable
class Running(Protocol):
    """What is reported of an engine, see `live.Engine`."""

    latencies: "Latencies"
    dropped: int
    sound_end: float
    last_time: float
    last_shown: float | None
    size: tuple[int, int] | None


class Latencies:
    """How long pictures took, in steps of a millisecond: of the second in hand, and of all."""

    def __init__(self):
        self._lock = threading.Lock()
        self._all = np.zeros(_SLOWEST + 1, np.int64)
        self._new: list[int] = []

    def add(self, seconds: float) -> None:
        with self._lock:
            self._new.append(min(_SLOWEST, max(0, round(seconds * 1000))))

    def next_second(self) -> tuple[int, dict[str, int] | None]:
        """How many there were since the last call, and their quantiles in milliseconds."""
        with self._lock:
            new, self._new = np.array(self._new, int), []
            np.add.at(self._all, new, 1)
        return len(new), _quantiles(np.bincount(new, minlength=1))

    def overall(self) -> tuple[int, dict[str, int] | None]:
        self.next_second()
        return int(self._all.sum()), _quantiles(self._all)


def _quantiles(counts: np.ndarray) -> dict[str, int] | None:
    total = counts.sum()
    if not total:
        return None
    reached = np.cumsum(counts) / total
    return {
        name: int(np.searchsorted(reached, share - 1e-9))
        for name, share in (("median", 0.5), ("p95", 0.95))
    }


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a live run came to."""

    seconds: float
    frames: int
    dropped: int
    latency_ms: dict[str, int] | None
    output: str | None

    @property
    def dropped_share(self) -> float:
        return self.dropped / max(1, self.frames + self.dropped)

    def __str__(self) -> str:
        text = (
            f"{self.frames} masks in {self.seconds:.1f} s ({self.frames / self.seconds:.1f} a "
            f"second), dropped {self.dropped_share:.1%} of the pictures"
        )
        if self.latency_ms:
            text += "; latency {median} ms (median), {p95} ms (p95)".format(**self.latency_ms)
        return text + (f"; {self.output}" if self.output else "")


class Reports:
    """A line and a JSON object a second."""

    def __init__(
        self, engine: Running, log: io.TextIOBase | None, say: Callable[[str], None], started: float
    ):
        self._engine, self._log, self._say, self._started = engine, log, say, started
        self._second = self._dropped = 0
        self._cpu = time.process_time()

    def reach(self, passed: float) -> None:
        if passed < self._second + 1:
            return
        self._second = int(passed)
        engine = self._engine
        frames, latency = engine.latencies.next_second()
        dropped, self._dropped = engine.dropped - self._dropped, engine.dropped
        stalled = time.monotonic() - (engine.last_shown or self._started)
        silent = max(0.0, engine.last_time - engine.sound_end)
        share = dropped / max(1, frames + dropped)
        if latency:
            line = "{} frames, latency {median} ms (median) {p95} ms (p95), dropped {:.0%}"
            line = line.format(frames, share, **latency)
        else:
            line = "no mask"
        if stalled > _STALL:
            line += f"; no picture for {stalled:.0f} s"
        elif silent > _STALL:
            line += f"; no sound for {silent:.0f} s"
        self._say(f"{self._second:5d} s: {line}")
        height, width = engine.size or (None, None)
        self._write(
            second=self._second,
            time=round(engine.last_time, 3),
            frames=frames,
            dropped=dropped,
            dropped_share=round(share, 4),
            latency_ms=latency,
            stalled=round(stalled, 1),
            silent=round(silent, 1),
            height=height,
            width=width,
            cpu_seconds=round(time.process_time() - self._cpu, 3),
            memory_mb=_memory_mb(),
        )

    def close(self, output: str | None) -> Summary:
        frames, latency = self._engine.latencies.overall()
        passed = time.monotonic() - self._started
        summary = Summary(passed, frames, self._engine.dropped, latency, output)
        self._write(
            summary=True,
            seconds=round(passed, 2),
            frames=frames,
            dropped=summary.dropped,
            dropped_share=round(summary.dropped_share, 4),
            latency_ms=latency,
            frames_per_second=round(frames / passed, 2),
            cpu_seconds=round(time.process_time() - self._cpu, 3),
            memory_mb=_memory_mb(),
        )
        return summary

    def _write(self, **values: Any) -> None:
        if self._log is not None:
            self._log.write(json.dumps(values) + "\n")
            self._log.flush()


def _memory_mb() -> float | None:
    """Resident memory, where the system tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
