"""One connection to a stream, or one run through a film: packets -> pictures and sound, in time."""

import collections
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import av
import numpy as np
import soxr

from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.clock import close_jumps
from avs_jax.media.film import sound_stream, video_stream
from avs_jax.media.sound_probe import Mixer, has_known_order, is_plain_adts
from avs_jax.media.video import show_times, upright_rgb
from avs_jax.types import Float, UInt8

# Pictures of a film that wait for their sound: containers interleave within a second.
_PENDING, _PENDING_BYTES = 32, 2**27
_SLIP = 1.0  # seconds by which a film may be late before its clock is set back
_GAP = 0.03  # seconds by which stamps of sound may stray from its samples, see `sound`
DEVICES = ("v4l2", "alsa", "pulse", "lavfi", "avfoundation", "dshow", "gdigrab", "x11grab")
UNSAFE = "its channels are in an order that FFmpeg has no name for"
_FAILURES = 3  # of a demuxer in a row


@runtime_checkable
class Receiver(Protocol):
    """What a source hands to; called from the source's thread."""

    def show(self, picture: "Picture") -> None:
        """A picture is on screen now."""

    def hear(self, moment: int | float, samples: Float[np.ndarray, "s"]) -> None:
        """16 kHz mono in [-1, 1], the first of which is heard at `moment`; gaps are silence."""

    def tell(self, text: str) -> None:
        """Something that a person wants to know: a connection was lost, a size changed."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is on screen from `time` on; `due`: when that was, on `time.monotonic`."""

    time: int | float
    due: float
    rgb: Callable[[], UInt8[np.ndarray, "h w 3"]]  # drawn when asked for: not if it is dropped


def is_safe(container, track, packet: av.Packet) -> bool:
    """Whether the channels of a track, by its first packet, are in an order that has a name.

    PyAV ends the process on others. Of a stream no packet may be taken to find that out.
    """
    context = track.codec_context
    if container.format.name in DEVICES:
        return True
    if context.name == "aac" and len(context.extradata or b"") < 2:
        return packet.size > 7 and is_plain_adts(bytes(packet))
    return has_known_order(container, track)


def mix(frame: av.AudioFrame, mixers: dict[tuple, Mixer]) -> np.ndarray:
    """The mean of a frame's channels; `mixers` holds the one in use."""
    kind = (frame.format.name, frame.layout.name, frame.sample_rate)
    if kind not in mixers:
        mixers.clear()
        mixers[kind] = Mixer(frame)
    samples = mixers[kind].mix(frame)
    return np.zeros(0, np.float32) if samples is None else samples.mean(0)


class Pace:
    """The clock of a film that is shown `speed` times as fast as it was taken."""

    def __init__(self, speed: int | float, stop: threading.Event):
        self.holds_back = True
        self._speed, self._stop = speed, stop
        self._zero: float | None = None

    def wait(self, moment: int | float) -> float:
        """Waits until a moment of the film is due, and returns when that was."""
        now = time.monotonic()
        if self._zero is None:
            self._zero = now - moment / self._speed
        due = self._zero + moment / self._speed
        if now - due > _SLIP:  # it cannot be read that fast, or the machine slept
            self._zero, due = self._zero + now - due, now
        if due > now:
            self._stop.wait(due - now)
        return due


class NoPace:
    """The clock of what comes by itself: it is due when it is there."""

    holds_back = False

    def wait(self, _moment: int | float) -> float:
        return time.monotonic()


class Reading:
    """One connection, or one run through a film: packets -> pictures and sound, in time."""

    def __init__(
        self,
        container,
        receiver: Receiver,
        stop: threading.Event,
        pace: Pace | NoPace,
        start: float | None,
        offset: float,
    ):
        """start: of the container's clock, is the time `offset`; None: its first packet is."""
        self._container, self._receiver = container, receiver
        self._stop, self._pace = stop, pace
        self._start, self._offset = start, offset
        self._pending: collections.deque = collections.deque()
        self._line = SoundLine()
        self._mixers: dict[tuple, Mixer] = {}
        self._size = None
        self.has_sound = True
        self.pictures = 0
        self.until = offset  # of pictures and sound

    def run(self) -> None:
        container = self._container
        stream = video_stream(container.name, container)
        # Not by frames: their decoder is as many pictures late as it has threads.
        stream.thread_type = "SLICE"
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        for moment, picture in show_times(container, stream, self._decode(stream), fps):
            moment += self._offset - (self._start or 0.0)
            self.until = max(self.until, moment + 1 / fps)
            self._pending.append((moment, picture))
            self._release(all_of_them=not (self._pace.holds_back and self.has_sound))
        self._release(all_of_them=True)

    def _release(self, all_of_them: bool = False) -> None:
        while self._pending and not self._stop.is_set():
            moment, picture = self._pending[0]
            is_heard = self._line.until is not None and self._line.until >= moment
            most = min(_PENDING, 2 * _PENDING_BYTES // (3 * picture.width * picture.height))
            if not (all_of_them or is_heard or len(self._pending) > most):
                return
            self._pending.popleft()
            due = self._pace.wait(moment)
            if self._stop.is_set():
                return
            size = (picture.width, picture.height)
            if self._size not in (None, size):
                self._receiver.tell("its pictures are {} x {} from here on".format(*size))
            self._size = size
            self.pictures += 1
            self._receiver.show(Picture(moment, due, functools.partial(upright_rgb, picture)))

    def _decode(self, stream) -> Iterator[av.VideoFrame]:
        """Pictures as they are decoded; sound goes its own way."""
        container = self._container
        track = sound_stream(container) if self.has_sound else None
        streams = [s for s in (stream, track) if s is not None and s.codec_context is not None]
        heard = False
        for packet in close_jumps(container, streams, self._demux(streams)):
            if self._start is None:
                stamp = packet.dts if packet.dts is not None else packet.pts or 0
                self._start = float(stamp * packet.time_base)
            if not heard and packet.stream.index != stream.index:
                heard = True
                if not is_safe(container, track, packet):
                    self._receiver.tell(f"{UNSAFE}; silence")
                    self.has_sound = False
            if not self.has_sound and packet.stream.index != stream.index:
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue  # damaged; the next key frame mends it
            if packet.stream.index == stream.index:
                yield from frames
            else:
                for frame in frames:
                    self._hear(frame)
                self._release()
        flush = av.Packet()
        flush.stream, flush.time_base = stream, stream.time_base
        with contextlib.suppress(av.FFmpegError):
            yield from flush.decode()

    def _demux(self, streams) -> Iterator[av.Packet]:
        """Packets until the end; what fails several times in a row is over."""
        failures = 0
        packets = self._container.demux(*streams)
        while not self._stop.is_set():
            try:
                packet = next(packets, None)
            except (av.EOFError, IndexError):
                return
            except av.FFmpegError as error:
                failures += 1
                if failures > _FAILURES or isinstance(error, av.error.ExitError | OSError):
                    raise
                packets = self._container.demux(*streams)
                continue
            if packet is None:
                return
            if packet.size:
                failures = 0
                yield packet

    def _hear(self, frame: av.AudioFrame) -> None:
        if frame.pts is None:
            return
        samples = mix(frame, self._mixers)
        moment = float(frame.pts * frame.time_base) - (self._start or 0.0) + self._offset
        for begin, block in self._line.push(moment, frame.sample_rate, samples):
            self._receiver.hear(begin, block)
        self.until = max(self.until, self._line.until)


class SoundLine:
    """Blocks of any rate with their times -> blocks of 16 kHz with theirs."""

    def __init__(self):
        self._rate = 0
        self.until: float | None = None  # what was pushed

    def push(
        self, moment: int | float, rate: int, samples: Float[np.ndarray, "s"]
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Yields (time, samples) of what comes out; after a gap it begins anew."""
        strays = self.until is not None and abs(moment - self.until) > _GAP
        if rate != self._rate or strays or self.until is None:
            if self._rate:
                rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                yield self._place(rest)
            self._rate = rate
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            self._begin, self._given = moment, 0
            self.until = moment
        self.until += len(samples) / rate
        yield self._place(self._resampler.resample_chunk(np.ascontiguousarray(samples)))

    def _place(self, samples: np.ndarray) -> tuple[float, np.ndarray]:
        begin = self._begin + self._given / SAMPLE_RATE
        self._given += len(samples)
        return begin, np.clip(samples, -1, 1)
