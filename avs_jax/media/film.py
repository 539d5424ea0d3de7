"""Opens films and decodes their streams (PyAV): for pictures, sound and the writer alike."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator

import av
from av.stream import Disposition

from avs_jax import errors
from avs_jax.media.clock import read_packets
from avs_jax.media.sound_probe import ANY_TAGS

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What `video.probe` found out. Sizes are as displayed (rotation applied), in pixels."""

    path: str
    width: int
    height: int
    fps: float  # average; the frames themselves may come at any pace
    duration: float | None  # of the pictures, as the header says, if it does
    start: float  # time of the first picture on the film's clock, see `clock`
    sample_rate: int  # of the sound track, Hz; 0 without sound
    channels: int
    silent_because: str  # "" when there is sound, else what is missing

    @property
    def has_audio(self) -> bool:
        return not self.silent_because


def local_file(path: str) -> str:
    """A path as FFmpeg takes it: never a protocol's, which `12:30.mp4` would be."""
    return f"file:{path}"


def open_film(path: str):
    """Opens a film for reading; what goes wrong is said in one line.

    Raises:
      NotFoundError: no such file. BadValueError: not a video, or not readable.
    """
    if not os.path.exists(path):
        raise errors.NotFoundError(f"no video {path!r}: there is no such file.")
    try:
        return av.open(local_file(path), **ANY_TAGS)
    except OSError as error:
        raise errors.BadValueError(f"cannot open video {path!r}: {error.strerror}.") from error
    except av.FFmpegError as error:
        raise errors.BadValueError(
            f"cannot read {path!r} as a video: {error.strerror}. It is not a video, or is damaged "
            "or incomplete."
        ) from error


def video_stream(path: str, container):
    """The film's main picture stream; a cover image of a sound file is none.

    Raises:
      BadValueError: there is none, or no decoder for it.
    """
    stream = container.streams.best("video")
    if stream is not None and stream.disposition & Disposition.attached_pic:
        films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        stream = films[0] if films else None
    if stream is None:
        kinds = {_kind(s) for s in container.streams}
        holds = ", ".join(sorted(kinds)) or "nothing"
        raise errors.BadValueError(f"{path!r} has no video stream (it holds: {holds}).")
    if stream.codec_context is None:
        raise errors.BadValueError(f"{path!r}: no decoder for its video codec; encode it as H.264.")
    return stream


def _kind(stream) -> str:
    return "a cover picture" if stream.disposition & Disposition.attached_pic else stream.type


def sound_stream(container):
    """The film's main sound track, or None."""
    return container.streams.best("audio")


def read_stream(
    path: str, container, stream, report: bool = False, damage: list | None = None
) -> Iterator[av.Packet]:
    """The packets of the film's pictures or sound, stamps on the film's one clock."""
    both = [video_stream(path, container), sound_stream(container)]
    streams = [s for s in both if s is not None and s.codec_context is not None]
    for packet in read_packets(container, streams, report, damage):
        if packet.stream.index == stream.index:
            yield packet


def decode_film(path: str, container, stream, report: bool = False) -> Iterator:
    """The decoded pictures or sound of a film on its one clock, without those that are damaged.

    Args:
      report: logs jumps of the clock, and how many packets were damaged.
    """
    damage: list[av.FFmpegError] = []
    for packet in read_stream(path, container, stream, report, damage):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage.append(error)
            continue
        yield from frames
    flush = av.Packet()  # rather than decode(None), whose frames have no time base
    flush.stream, flush.time_base = stream, stream.time_base
    with contextlib.suppress(av.FFmpegError):  # nothing came before, or the last ones are damaged
        yield from flush.decode()
    if damage and report:
        _log.warning("%s: %d damaged packets skipped.", path, len(damage))
