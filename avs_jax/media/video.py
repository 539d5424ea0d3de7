"""Reads video files with their sound (PyAV): frames, samples, and clips that align the two.

Everything streams: a reader holds the frames and samples of the clip in hand and no more, so a film
of any length takes the same memory. Times are in seconds; 0 is the first picture.

    info = probe("film.mp4")
    for clip in read_clips(info, seconds=5, frame_offset=0.5, size=224):
        ...

`video_writer.py` is the other direction.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

import av
import cv2
import numpy as np

from avs_jax import errors
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.film import VideoInfo, decode_film, open_film, video_stream
from avs_jax.media.sound import probe_sound, read_sound
from avs_jax.types import Bool, Float, UInt8

__all__ = [
    "Clip",
    "Frame",
    "VideoInfo",
    "fit_picture",
    "probe",
    "read_clips",
    "read_frames",
    "read_sound",
    "show_times",
    "upright_rgb",
]
_EPSILON = 1e-6  # seconds; far below the finest time base in use (1/90000), far above rounding


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture of a film, on screen from `time` for `duration` seconds."""

    time: float
    duration: float
    picture: av.VideoFrame
    info: VideoInfo

    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """The upright picture, always the film's height x width (a stream may change its size)."""
        array = upright_rgb(self.picture)
        size = (self.info.width, self.info.height)
        return array if array.shape[1::-1] == size else cv2.resize(array, size)


@dataclasses.dataclass(frozen=True)
class Clip:
    """`t` frames one second apart and the sound around them: what a model sees at once."""

    index: int  # clips follow each other in time; the phases of one share its index
    # Seconds; NaN where there is no frame, or the clip before has it.
    times: Float[np.ndarray, "t"]
    frames: UInt8[np.ndarray, "t h w 3"]  # RGB
    waveform: Float[np.ndarray, "s"]  # 16 kHz mono in [-1, 1], s = 16000 * t
    frame_mask: Bool[np.ndarray, "t"]  # False: the film is over; black frame, silence


def probe(path: str | os.PathLike) -> VideoInfo:
    """Looks at a film's header, first picture and first sound.

    Raises:
      NotFoundError: no such file.
      BadValueError: not readable as a video, no video stream, or no picture that can be decoded.
        Missing sound is not an error here, see `require_audio`.
    """
    path = os.fspath(path)
    with open_film(path) as container:
        stream = video_stream(path, container)
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        pictures = decode_film(path, container, stream)
        start, picture = next(show_times(container, stream, pictures, fps), (0.0, None))
        if picture is None:
            raise errors.BadValueError(
                f"{path!r} has a video stream, but none of its pictures can be decoded: the file "
                "is damaged or incomplete; get it again."
            )
        outline = np.empty((picture.height, picture.width, 0), np.uint8)
        height, width = _upright(outline, _display_matrix(picture)).shape[:2]
        duration = None  # live recordings do not say
        if stream.duration:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
    rate, channels, silent_because = probe_sound(path)
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        fps=fps,
        duration=duration,
        start=start,
        sample_rate=rate,
        channels=channels,
        silent_because=silent_because,
    )


def require_audio(info: VideoInfo) -> None:
    """Raises BadValueError if the film has no sound."""
    if not info.has_audio:
        raise errors.BadValueError(
            f"{info.path!r} has {info.silent_because}; wanted a video with sound, because what "
            "sounds is what is marked. --allow-silent takes it as silence."
        )


def read_frames(info: VideoInfo) -> Iterator[Frame]:
    """Yields every picture in the order of display; times start at 0 and strictly increase."""
    with open_film(info.path) as container:
        stream = video_stream(info.path, container)
        stream.thread_type = "AUTO"
        pictures = decode_film(info.path, container, stream, report=True)
        for time, picture in show_times(container, stream, pictures, info.fps):
            duration = float((picture.duration or 0) * (picture.time_base or 0))
            yield Frame(time - info.start, duration or 1 / info.fps, picture, info)


def read_clips(
    info: VideoInfo,
    *,
    seconds: int,
    frame_offset: float,
    size: int | None = None,
    fps: int = 1,
    allow_silent: bool = False,
) -> Iterator[Clip]:
    """Cuts the film into clips as in training: one frame a second, with the sound of those seconds.

    Clip i covers the seconds from i * t on; its frame of second k is what is on screen at
    k + frame_offset. The last, incomplete second counts if that frame exists or half of the second
    does (then the film's last frame is taken). Every film has at least one.

    What is left of the film at its end comes in a clip that reaches back: all its frames are real,
    as in training, and `times` tells those that no clip before it had. A film shorter than a clip
    is padded with masked frames.

    Args:
      info: the film, from `probe`.
      seconds: t, the length of a clip.
      frame_offset: where in its second a frame is taken, 0..1.
      size: frames are resized to size x size, None leaves them as they are.
      fps: for more than one mask a second every clip comes `fps` times in a row, its frames and
        its sound shifted by 0, 1/fps, 2/fps ... seconds: each frame has the sound around it, as in
        training.
      allow_silent: a film without sound is taken as silence.

    Raises:
      BadValueError: the film has no sound and allow_silent is off.
    """
    if not allow_silent:
        require_audio(info)
    sound = _Sound(read_sound(info))
    shape = (size, size) if size else (info.height, info.width)
    samples = _sample_frames(info, frame_offset, fps, size)
    length = seconds * fps
    before: dict[int, tuple[float, np.ndarray]] = {}  # the samples of the clips just given
    for index, group in itertools.groupby(samples, lambda sample: sample[0] // length):
        new = {j: (time, rgb) for j, time, rgb in group}
        firsts = []
        for phase in range(min(fps, len(new))):
            ours = [j for j in new if j % fps == phase]
            reaches_back = index > 0 and len(ours) < seconds
            firsts.append(ours[-1] - (seconds - 1) * fps if reaches_back else ours[0])
        known = before | new
        for first in sorted(firsts):  # as the sound comes
            times = np.full(seconds, np.nan)
            frames = np.zeros((seconds, *shape, 3), np.uint8)
            frame_mask = np.zeros(seconds, bool)
            for second, j in enumerate(range(first, first + length, fps)):
                if j in known:
                    frame_mask[second], frames[second] = True, known[j][1]
                if j in new:
                    times[second] = new[j][0]
            waveform = sound.window(round(first / fps * SAMPLE_RATE), seconds * SAMPLE_RATE)
            waveform *= np.repeat(frame_mask, SAMPLE_RATE)
            yield Clip(index, times, frames, waveform, frame_mask)
        before = new


def fit_picture(rgb: UInt8[np.ndarray, "h w 3"], size: int | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture at size x size, as it is trained on and shown to a model; None leaves it."""
    if size is None or rgb.shape[:2] == (size, size):
        return rgb
    shrinks = rgb.shape[0] > size and rgb.shape[1] > size  # averaging does not alias
    return cv2.resize(rgb, (size, size), interpolation=1 + 2 * shrinks)


def _sample_frames(
    info: VideoInfo, frame_offset: float, fps: int, size: int | None
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yields (j, time, rgb) for j = 0, 1, ...: what is on screen at j / fps + frame_offset."""

    def picture(frame):
        return fit_picture(frame.rgb(), size)

    j, current = 0, None  # the picture on screen
    for frame in read_frames(info):
        while current is not None and j / fps + frame_offset < frame.time - _EPSILON:
            yield j, j / fps + frame_offset, picture(current)
            j += 1
        current = frame
    if current is None:
        return
    end = current.time + current.duration - _EPSILON
    last = (j - 1) / fps + frame_offset if j else -1.0
    while True:
        target = j / fps + frame_offset
        half_exists = last < current.time and j / fps + 0.5 <= end + 2 * _EPSILON
        if target >= end and j and not half_exists:
            return
        last = target if target < end else current.time
        yield j, last, picture(current)
        j += 1


class _Sound:
    """Windows over a stream of sample blocks, asked for in the order of their begin."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks = iter(blocks)
        self._held = np.zeros(0, np.float32)
        self._begin = 0  # index of the first held sample

    def window(self, begin: int, length: int) -> Float[np.ndarray, "s"]:
        """Samples begin ... begin + length, zeros where the stream has ended."""
        parts, end = [self._held], self._begin + len(self._held)
        while end < begin + length and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            end += len(block)
            if end < begin:  # nothing of this is wanted any more
                parts, self._begin = [], end
        held = np.concatenate([*parts, np.zeros(0, np.float32)])
        self._held = held[max(0, begin - self._begin) :]
        self._begin = max(self._begin, begin)
        window = np.zeros(length, np.float32)
        found = self._held[:length]
        window[: len(found)] = found
        return window


def show_times(
    container, stream, pictures: Iterable[av.VideoFrame], fps: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields (time, picture) with times that strictly increase, whatever the stamps do."""
    # AVI has no display times, and the guess made for them goes back and forth; its decoding times
    # are those of display, late by the decoder's delay.
    is_avi = container.format.name == "avi"
    last, delay = None, 0.0
    for picture in pictures:
        stamp = picture.dts if is_avi else picture.pts
        if stamp is None:
            time = 0.0 if last is None else last + 1 / fps
        else:
            time = float(stamp * picture.time_base) - delay
            if is_avi and last is None:
                delay = time - float((stream.start_time or 0) * stream.time_base)
                time -= delay
        if last is None or time > last:
            last = time
            yield time, picture


def upright_rgb(picture: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded picture as it is displayed, of its own size."""
    stored = picture.to_ndarray(format="rgb24")
    return np.ascontiguousarray(_upright(stored, _display_matrix(picture)))


def _display_matrix(picture: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): the stored pixel (x, y) is displayed at (a x + c y, b x + d y), in signs."""
    data = picture.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if data is None:
        return (1, 0, 0, 1)
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):  # to the nearest quarter turn
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _upright(array: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turns and mirrors a stored picture [h w c] to how it is displayed."""
    a, b, c, d = matrix
    if not a:
        array = array.transpose(1, 0, 2)
    return array[:: b + d, :: a + c]
