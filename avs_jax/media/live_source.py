"""Pictures and sound as they come: a film at its own pace, a camera, a stream (PyAV).

source = open_source("rtsp://camera/1")
source.run(receiver, stop)  # in a thread of its own, until `stop` is set or nothing more can come

`receiver` is any object with the methods of `Receiver`. Times are in seconds from the source's
beginning and go on over a loop, a jump of the stream's clock and a lost connection.

A film, and whatever else can be read faster than it happens, is shown at its own pace times
`speed`: each picture when it is due, and once its sound has been read. Other sources set the pace
themselves: a picture is handed on when it is decoded, its sound when that comes. Of a source that
fails or stands still the connection is made again, after 0.5 s at first, 10 s at most.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import av
import numpy as np
import soxr

from avs_jax import errors
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.clock import close_jumps
from avs_jax.media.film import open_film, sound_stream, video_stream
from avs_jax.media.sound_probe import ANY_TAGS, Mixer, has_known_order
from avs_jax.media.video import VideoInfo, probe, require_audio, show_times, upright_rgb
from avs_jax.types import Float, UInt8

_STALL = 5.0  # seconds without a byte after which a connection is given up
_OPENING = 15.0  # FFmpeg looks at up to 5 s of a stream before it knows what is in it
_WAITS = (0.5, 10.0)  # seconds before a connection is tried again: at first, at most
# Pictures of a film that wait for their sound: containers interleave within a second.
_PENDING, _PENDING_BYTES = 32, 2**27
_SLIP = 1.0  # seconds by which a film may be late before its clock is set back
# What can be read as fast as one likes, but for films, which have a length.
_UNPACED = ("lavfi",)
_DEVICES = ("v4l2", "alsa", "pulse", "lavfi", "avfoundation", "dshow", "gdigrab", "x11grab")


class Receiver(Protocol):
    """What a source hands to; called from the source's thread."""

    def show(self, picture: "Picture") -> None:
        """A picture is on screen now."""

    def hear(self, moment: float, samples: Float[np.ndarray, "s"]) -> None:
        """16 kHz mono in [-1, 1], the first of which is heard at `moment`; gaps are silence."""

    def tell(self, text: str) -> None:
        """Something that a person wants to know: a connection was lost, a size changed."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is on screen from `time` on; `due`: when that was, on `time.monotonic`."""

    time: float
    due: float
    rgb: Callable[[], UInt8[np.ndarray, "h w 3"]]  # drawn when asked for: not if it is dropped


class Source(Protocol):
    """Something that `run` reads until it ends or `stop` is set."""

    name: str

    def run(self, receiver: Receiver, stop: threading.Event) -> None:
        """Raises an InputError where nothing can be read at all."""


def open_source(
    name: str, *, speed: float = 1.0, loop: bool = False, allow_silent: bool = False
) -> Source:
    """The source that a name means.

    Args:
      name: a film's path; a stream by FFmpeg's name (`rtsp://`, `udp://`, `pipe:0`, - for stdin); a
        device, `camera`, `/dev/video1` or FORMAT:NAME by FFmpeg's names (`avfoundation:0:0`).
      speed: how many seconds of a film pass in one. loop: a film begins again at its end.
      allow_silent: takes what has no sound as silence.

    Raises:
      NotFoundError: it is no name of these kinds, or no such file.
      BadValueError: a film that cannot be read or has no sound; a speed that is not positive.
    """
    if not 0 < speed < float("inf"):
        raise errors.BadValueError(f"--live_speed={speed}: wanted a positive number.")
    mode = os.stat(name).st_mode if os.path.exists(name) else None
    if mode is not None and stat.S_ISREG(mode):
        info = probe(name)
        if not allow_silent:
            require_audio(info)
        return _Film(info, speed, loop)
    if name == "camera":
        name = "/dev/video0"
    format_name, address = None, name
    if name == "-":
        address = "pipe:0"
    elif mode is not None and stat.S_ISFIFO(mode):
        address = f"file:{name}"
    elif name.startswith("/dev/video"):
        format_name = "v4l2"
    elif name.partition(":")[0] in _DEVICES:
        format_name, _, address = name.partition(":")
    elif not re.match(r"[a-z][a-z0-9+]+:", name):
        raise errors.NotFoundError(
            f"no live source {name!r}: there is no such film, and it is no stream (rtsp://, "
            "udp://, tcp://, pipe:0, -) and no device (camera, /dev/video0, FORMAT:NAME)."
        )
    return _Stream(name, address, format_name, speed, allow_silent)


class _Film:
    """A file, at its own pace."""

    def __init__(self, info: VideoInfo, speed: float, loop: bool):
        self.name = info.path
        self._info, self._speed, self._loop = info, speed, loop

    def run(self, receiver: Receiver, stop: threading.Event) -> None:
        pace = _Pace(self._speed, stop)
        offset = 0.0
        while not stop.is_set():
            with open_film(self._info.path) as container:
                reading = _Reading(container, receiver, stop, pace, self._info.start, offset)
                reading.has_sound = self._info.has_audio
                reading.run()
            if not self._loop:
                return
            offset = max(reading.until, offset + 1 / self._info.fps)


class _Stream:
    """What comes by itself; connected again when it is lost."""

    def __init__(self, name: str, address: str, format_name, speed: float, allow_silent: bool):
        self.name = name
        self._address, self._format = address, format_name
        self._speed, self._allow_silent = speed, allow_silent
        self._begun: float | None = None

    def run(self, receiver: Receiver, stop: threading.Event) -> None:
        wait, is_first = _WAITS[0], True
        while not stop.is_set():
            reason = "it ended"
            try:
                with self._connect(is_first) as container:
                    if self._read(container, receiver, stop):
                        wait, is_first = _WAITS[0], False
            except (av.FFmpegError, OSError, errors.InputError) as error:
                may_come = isinstance(error, TimeoutError | av.error.ExitError)
                if is_first and not may_come:
                    raise self._cannot_read(error) from error
                reason = _reason(error)
            if stop.is_set() or self._address.startswith("pipe:"):  # what wrote to it is gone
                return
            receiver.tell(f"{self.name}: lost ({reason}); trying again in {wait:g} s")
            stop.wait(wait)
            wait = min(2 * wait, _WAITS[1])

    @contextlib.contextmanager
    def _connect(self, is_first: bool) -> Iterator:
        options = {"fflags": "nobuffer"}
        container = av.open(
            self._address,
            format=self._format,
            options=options,
            timeout=(_OPENING, _STALL),
            **ANY_TAGS,
        )
        with container:
            track = sound_stream(container)
            if track is None and is_first and not self._allow_silent:
                raise errors.BadValueError(
                    f"{self.name!r} has no sound; what sounds is what is marked. --allow-silent "
                    "takes it as silence."
                )
            yield container

    def _read(self, container, receiver: Receiver, stop: threading.Event) -> bool:
        """Whether a picture came."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
        elif container.streams.video:
            receiver.tell(f"{self.name}: back")
        is_paced = container.format.name in _UNPACED or container.duration
        pace = _Pace(self._speed, stop) if is_paced else _NoPace()
        offset = (now - self._begun) * (self._speed if is_paced else 1.0)
        reading = _Reading(container, receiver, stop, pace, None, offset)
        track = sound_stream(container)
        reading.has_sound = track is not None and (
            has_known_order(container, track) or container.format.name in _DEVICES
        )
        if track is not None and not reading.has_sound:
            receiver.tell(f"{self.name}: its sound is in an order of channels that is not known")
        reading.run()
        return reading.pictures > 0

    def _cannot_read(self, error: Exception) -> errors.InputError:
        if isinstance(error, errors.InputError):
            return error
        kind = (
            errors.NotFoundError if isinstance(error, FileNotFoundError) else errors.BadValueError
        )
        return kind(f"cannot read the live source {self.name!r}: {_reason(error)}.")


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError | TimeoutError):
        return f"nothing came for {_STALL:g} s"
    return getattr(error, "strerror", None) or str(error)


class _Pace:
    """The clock of a film that is shown `speed` times as fast as it was taken."""

    def __init__(self, speed: float, stop: threading.Event):
        self.holds_back = True
        self._speed, self._stop = speed, stop
        self._zero: float | None = None

    def wait(self, moment: float) -> float:
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


class _NoPace:
    """The clock of what comes by itself: it is due when it is there."""

    holds_back = False

    def wait(self, _moment: float) -> float:
        return time.monotonic()


class _Reading:
    """One connection, or one run through a film: packets -> pictures and sound, in time."""

    def __init__(
        self,
        container,
        receiver: Receiver,
        stop: threading.Event,
        pace: _Pace | _NoPace,
        start: float | None,
        offset: float,
    ):
        """start: of the container's clock, is the time `offset`; None: its first packet is."""
        self._container, self._receiver = container, receiver
        self._stop, self._pace = stop, pace
        self._start, self._offset = start, offset
        self._pending: collections.deque = collections.deque()
        self._line = _SoundLine()
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
        for packet in close_jumps(container, streams, self._demux(streams)):
            if self._start is None:
                stamp = packet.dts if packet.dts is not None else packet.pts or 0
                self._start = float(stamp * packet.time_base)
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
                if failures > 3 or isinstance(error, av.error.ExitError | OSError):
                    raise
                packets = self._container.demux(*streams)
                continue
            if packet is None:
                return
            if packet.size:
                failures = 0
                yield packet

    def _hear(self, frame: av.AudioFrame) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind not in self._mixers:
            self._mixers = {kind: Mixer(frame)}
        samples = self._mixers[kind].mix(frame)
        if samples is None or frame.pts is None:
            return
        moment = float(frame.pts * frame.time_base) - (self._start or 0.0) + self._offset
        for begin, block in self._line.push(moment, frame.sample_rate, samples.mean(0)):
            self._receiver.hear(begin, block)
        self.until = max(self.until, self._line.until)


class _SoundLine:
    """Blocks of any rate with their times -> blocks of 16 kHz with theirs."""

    def __init__(self):
        self._rate = 0
        self.until: float | None = None  # what was pushed

    def push(
        self, moment: float, rate: int, samples: Float[np.ndarray, "s"]
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


_GAP = 0.03  # seconds by which stamps of sound may stray from its samples, see `sound`
