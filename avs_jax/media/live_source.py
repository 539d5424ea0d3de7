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

import functools
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import av

from avs_jax import errors
from avs_jax.media.film import open_film, sound_stream
from avs_jax.media.live_reading import (
    DEVICES,
    UNSAFE,
    NoPace,
    Pace,
    Reading,
    Receiver,
    SoundLine,
    is_safe,
    mix,
)
from avs_jax.media.sound_probe import ANY_TAGS
from avs_jax.media.video import VideoInfo, probe, require_audio

_STALL = 5.0  # seconds without a byte after which a connection is given up
_OPENING = 15.0  # FFmpeg looks at up to 5 s of a stream before it knows what is in it
_WAITS = (0.5, 10.0)  # seconds before a connection is tried again: at first, at most
_ALSA_SETTINGS = "/usr/share/alsa/alsa.conf"
_JITTER = 0.2  # seconds by which blocks of a microphone may come early or late
# What can be read as fast as one likes, but for films, which have a length.
_UNPACED = ("lavfi",)


@runtime_checkable
class Source(Protocol):
    """Something that `run` reads until it ends or `stop` is set."""

    name: str

    def run(self, receiver: Receiver, stop: threading.Event) -> None:
        """Raises an InputError where nothing can be read at all."""


def open_source(
    name: str,
    *,
    sound: str | None = None,
    speed: int | float = 1.0,
    loop: bool = False,
    allow_silent: bool = False,
) -> Source:
    """The source that a name means.

    Args:
      name: a film's path; a stream by FFmpeg's name (`rtsp://`, `udp://`, `pipe:0`, - for stdin); a
        device, `camera`, `/dev/video1` or FORMAT:NAME by FFmpeg's names (`avfoundation:0:0`).
      sound: a microphone or another stream to hear beside the pictures, FORMAT:NAME or by FFmpeg's
        name; None: what comes with them, with a Linux camera ALSA's default.
      speed: how many seconds of a film pass in one. loop: a film begins again at its end.
      allow_silent: takes what has no sound as silence.

    Raises:
      NotFoundError: it is no name of these kinds, or no such file.
      BadValueError: a film that cannot be read, has no sound or was given another; a speed that is
        not positive.
    """
    if not 0 < speed < float("inf"):
        raise errors.BadValueError(f"--live_speed={speed}: wanted a positive number.")
    if os.path.isfile(name):
        if sound is not None:
            raise errors.BadValueError("--live_sound is not for films, which bring their own.")
        info = probe(name)
        if not allow_silent:
            require_audio(info)
        return _Film(info, speed, loop)
    pictures = _find_address(name)
    if sound is None and pictures.format_name == "v4l2" and not allow_silent:
        sound = "alsa:default"  # cameras bring no sound
    microphone = None if sound is None else _find_address(sound)
    return _Stream(pictures, microphone, speed, allow_silent)


class _Address(NamedTuple):
    """A stream as FFmpeg opens it."""

    name: str  # that the user gave
    url: str
    format_name: str | None

    def open(self):
        # PyAV's own libasound looks for its settings where it was built.
        if self.format_name == "alsa" and os.path.exists(_ALSA_SETTINGS):
            os.environ.setdefault("ALSA_CONFIG_PATH", _ALSA_SETTINGS)
        return av.open(self.url, format=self.format_name, timeout=(_OPENING, _STALL), **ANY_TAGS)


def _find_address(name: str) -> _Address:
    is_pipe = os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode)
    if name == "-":
        return _Address(name, "pipe:0", None)
    if is_pipe:
        return _Address(name, f"file:{name}", None)
    if name == "camera" or name.startswith("/dev/video"):
        return _Address(name, "/dev/video0" if name == "camera" else name, "v4l2")
    head, _, rest = name.partition(":")
    if head in DEVICES:
        return _Address(name, rest, head)
    if not re.match(r"[a-z][a-z0-9+]+:", name):
        raise errors.NotFoundError(
            f"no live source {name!r}: there is no such film, and it is no stream (rtsp://, "
            "udp://, tcp://, pipe:0, -) and no device (camera, /dev/video0, FORMAT:NAME)."
        )
    return _Address(name, name, None)


class _Film:
    """A file, at its own pace."""

    def __init__(self, info: VideoInfo, speed: int | float, loop: bool):
        self.name = info.path
        self._info, self._speed, self._loop = info, speed, loop

    def run(self, receiver: Receiver, stop: threading.Event) -> None:
        pace = Pace(self._speed, stop)
        offset = 0.0
        while not stop.is_set():
            with open_film(self._info.path) as container:
                reading = Reading(container, receiver, stop, pace, self._info.start, offset)
                reading.has_sound = self._info.has_audio
                reading.run()
            if not self._loop:
                return
            offset = max(reading.until, offset + 1 / self._info.fps)


class _Stream:
    """What comes by itself; connected again when it is lost."""

    def __init__(
        self, address: _Address, microphone: _Address | None, speed: int | float, allow_silent: bool
    ):
        self.name = address.name
        self._address, self._microphone = address, microphone
        self._speed, self._allow_silent = speed, allow_silent
        self._begun: float | None = None
        self._until, self._is_over = 0.0, False

    def run(self, receiver: Receiver, stop: threading.Event) -> None:
        read = functools.partial(self._read, receiver=receiver, stop=stop)
        self._is_over = self._address.url.startswith("pipe:")  # what wrote to it is gone
        _keep_connected(self._address, read, receiver, stop, lambda: self._is_over)

    def _read(self, container, is_first: bool, receiver: Receiver, stop: threading.Event) -> bool:
        """Whether a picture came."""
        track = sound_stream(container)
        if is_first and track is None and self._microphone is None and not self._allow_silent:
            raise errors.BadValueError(
                f"{self.name!r} has no sound, and what sounds is what is marked: name a microphone "
                "by --live_sound FORMAT:NAME. --allow-silent takes it as silence."
            )
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
            if self._microphone is not None:
                microphone = _Microphone(self._microphone, now, receiver, stop)
                threading.Thread(target=microphone.run, daemon=True).start()
        is_paced = container.format.name in _UNPACED or container.duration
        pace = Pace(self._speed, stop) if is_paced else NoPace()
        offset = (now - self._begun) * (self._speed if is_paced else 1.0)
        offset = max(offset, self._until)  # a pipe may be read faster than it was filled
        reading = Reading(container, receiver, stop, pace, None, offset)
        reading.has_sound = track is not None and self._microphone is None
        try:
            reading.run()
            self._is_over |= bool(is_paced)  # a film that was read to its end
        finally:
            self._until = reading.until
        return reading.pictures > 0


class _Microphone:
    """Sound that comes by another way than the pictures: at the time at which it is there."""

    def __init__(self, address: _Address, zero: float, receiver: Receiver, stop: threading.Event):
        self._address, self._zero = address, zero
        self._receiver, self._stop = receiver, stop

    def run(self) -> None:
        try:
            _keep_connected(self._address, self._read, self._receiver, self._stop, lambda: False)
        except errors.InputError as error:
            self._receiver.tell(f"{error} It is heard as silence.")

    def _read(self, container, is_first: bool) -> bool:
        track = sound_stream(container)
        if track is None:
            raise errors.BadValueError(f"{self._address.name!r} has no sound.")
        pace = Pace(1.0, self._stop) if container.format.name in _UNPACED else NoPace()
        line, mixers, given = SoundLine(), {}, 0.0
        for packet in container.demux(track):
            if self._stop.is_set():
                break
            if not packet.size:
                continue
            if not given and not is_safe(container, track, packet):
                raise errors.BadValueError(f"{self._address.name!r}: {UNSAFE}.")
            for frame in packet.decode():
                length = frame.samples / frame.sample_rate
                given += length
                pace.wait(given)
                begin = time.monotonic() - self._zero - length
                if line.until is not None and abs(begin - line.until) < _JITTER:
                    begin = line.until  # blocks come when the machine has time
                for moment, block in line.push(begin, frame.sample_rate, mix(frame, mixers)):
                    self._receiver.hear(moment, block)
        return given > 0


def _keep_connected(
    address: _Address,
    read: Callable,
    receiver: Receiver,
    stop: threading.Event,
    is_over: Callable[[], bool],
) -> None:
    """`read(container, is_first)`, again and again until `stop` or it `is_over`.

    Raises:
      InputError: it could not be read at all; but for what is silent, and may yet come.
    """
    wait, is_first = _WAITS[0], True
    while not stop.is_set():
        reason = "it ended"
        try:
            with address.open() as container:
                if not is_first:
                    receiver.tell(f"{address.name}: back")
                if read(container, is_first):
                    wait, is_first = _WAITS[0], False
        except (av.FFmpegError, OSError, errors.InputError) as error:
            reason = _reason(error)
            may_come = isinstance(error, TimeoutError | av.error.ExitError)
            if is_first and isinstance(error, errors.InputError):
                raise
            if is_first and not may_come:
                missing = isinstance(error, FileNotFoundError)
                kind = errors.NotFoundError if missing else errors.BadValueError
                text = f"cannot read the live source {address.name!r}: {reason}."
                raise kind(text) from error
        if stop.is_set() or is_over():
            return
        what = "not there yet" if is_first else "lost"
        receiver.tell(f"{address.name}: {what} ({reason}); trying again in {wait:g} s")
        stop.wait(wait)
        wait = min(2 * wait, _WAITS[1])


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError | TimeoutError):
        return f"nothing came for {_STALL:g} s"
    return getattr(error, "strerror", None) or str(error)
