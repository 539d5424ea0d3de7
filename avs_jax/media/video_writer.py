"""Writes a film anew with changed pictures and the sound of the original (PyAV, x264).

info = video.probe("film.mp4")
with OverlayWriter("overlay.mp4", info) as writer:
    for frame in video.read_frames(info):
        writer.write(frame, draw(frame.rgb()))
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from avs_jax import errors
from avs_jax.media import partial
from avs_jax.media.film import (
    VideoInfo,
    local_file,
    open_film,
    read_stream,
    sound_stream,
    video_stream,
)
from avs_jax.media.sound import decode_sound, fill_gaps, resample
from avs_jax.media.video import Frame
from avs_jax.types import UInt8

_TICKS = 90_000  # of the new film's clock per second, as MPEG: 24, 25, 30, 60/1.001 fps are exact
_BLOCK = 4096  # samples that are given to the encoder at a time
_VARIABLE_RATE = 0x400  # AVFMT_VARIABLE_FPS: a container whose pictures have times of their own
_MP4_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}  # copied; what players play


class OverlayWriter:
    """Writes a film anew: changed pictures (H.264) at their old times, and the original's sound.

    The sound track is copied packet by packet if the new container can hold it, else encoded as
    AAC: `sound` says "copied", "re-encoded" or "none". An odd width or height is padded by one
    pixel, which 4:2:0 video needs. The film appears under its name when it is complete: until then
    the data are in a hidden file beside it, which goes away if anything goes wrong, and what had
    that name is untouched.

    Raises (on entering):
      BadValueError: the path is the film's own, a folder or not writable, or its container cannot
        hold H.264.
    """

    def __init__(self, path: str | os.PathLike, info: VideoInfo, crf: int = 20):
        self.path = os.fspath(path)
        self.sound = "none"
        self._info = info
        self._crf = crf  # x264's quality: 18 is visually lossless, 23 its default
        self._partial = partial.hidden_name(self.path)

    def __enter__(self) -> "OverlayWriter":
        check_output(self.path, self._info.path)
        partial.begin(self._partial)
        self._stack = contextlib.ExitStack()
        try:
            self._start(copy_sound=True)
        except OSError as error:
            self._discard()
            raise self._cannot_write(error) from error
        except (av.FFmpegError, ValueError):
            self._discard()  # some containers refuse a codec only when the header is written
            self._stack = contextlib.ExitStack()
            try:
                self._start(copy_sound=False)
            except (av.FFmpegError, ValueError) as error:
                self._discard()
                raise _no_container(self.path, str(error)) from error
        return self

    def write(self, frame: Frame, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        """Writes `rgb` in the place of `frame`'s picture, and the sound up to there."""
        try:
            time = frame.time + self._lead
            self._mux_sound(until=time)
            odd = [(0, side % 2) for side in rgb.shape[:2]]
            if any(pad for _, pad in odd):
                rgb = np.pad(rgb, [*odd, (0, 0)], mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=self._matrix)
            picture.time_base = Fraction(1, _TICKS)
            picture.pts = self._last = max(round(time * _TICKS), self._last + 1)
            picture.duration = round(frame.duration * _TICKS)
            self._output.mux(self._video.encode(picture))
        except (OSError, av.FFmpegError) as error:
            raise self._cannot_write(error) from error

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._output.mux(self._video.encode(None))
            self._mux_sound(until=float("inf"))
            self._output.close()
            os.replace(self._partial, self.path)
        except (OSError, av.FFmpegError) as failure:
            raise self._cannot_write(failure) from failure
        finally:
            self._discard()

    def _start(self, copy_sound: bool) -> None:
        """Opens both films and writes the header."""
        self.sound = "none"
        source = self._stack.enter_context(open_film(self._info.path))
        movie = os.path.splitext(self.path)[1].lower() in (".mp4", ".m4v", ".mov")
        options = {"movflags": "+faststart"} if movie else {}  # plays while it loads
        self._output = av.open(local_file(self._partial), "w", container_options=options)
        self._add_video(video_stream(self._info.path, source))
        self._packets: Iterator[av.Packet] = iter(())
        self._lead = 0.0  # of the first picture behind the beginning of the new film
        self._last = -1  # ticks, of the last picture
        if self._info.has_audio:
            track = sound_stream(source)
            packets = read_stream(self._info.path, source, track)
            first = next(packets, None)
            packets = itertools.chain([first] if first else [], packets)
            self._lead = max(0.0, self._info.start - _begin(track, first, self._info.start))
            zero = self._info.start - self._lead  # of the new film, on the old one's clock
            if copy_sound and (not movie or track.codec_context.codec.canonical_name in _MP4_SOUND):
                copy = self._output.add_stream_from_template(track)
                self._packets, self.sound = _copy_packets(packets, copy, zero), "copied"
            else:
                encoder = self._add_aac()
                self._packets = _encode_sound(self._info, encoder, zero)
                self.sound = "re-encoded"
        self._pending = None
        self._output.start_encoding()

    def _add_video(self, source) -> None:
        """Adds the H.264 stream, with the colours and the pixel shape of the source."""
        old = source.codec_context
        rate = Fraction(self._info.fps).limit_denominator(1001)
        self._video = self._output.add_stream("libx264", rate=rate)
        self._video.width = self._info.width + self._info.width % 2
        self._video.height = self._info.height + self._info.height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"crf": str(self._crf), "preset": "superfast"}
        new = self._video.codec_context
        new.time_base = Fraction(1, _TICKS)
        # Matrices that swscale knows: BT.709, FCC, BT.601 twice, 240M, BT.2020. Others (an RGB
        # source) become BT.601, and are left untagged like most old files.
        known = old.colorspace in (1, 4, 5, 6, 7, 9)
        self._matrix = old.colorspace if known else 5
        if known:
            new.colorspace, new.color_primaries = old.colorspace, old.color_primaries
            new.color_trc = old.color_trc
        ratio = source.sample_aspect_ratio or Fraction(1)
        turned = (self._info.width, self._info.height) != (old.width, old.height)
        new.sample_aspect_ratio = 1 / ratio if turned else ratio

    def _add_aac(self):
        rates = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
        rate = self._info.sample_rate if self._info.sample_rate in rates else 48000
        encoder = self._output.add_stream("aac", rate=rate)
        encoder.codec_context.layout = "mono" if self._info.channels == 1 else "stereo"
        encoder.codec_context.bit_rate = 96_000 * encoder.codec_context.layout.nb_channels
        return encoder

    def _mux_sound(self, until: float) -> None:
        while True:
            if self._pending is None:
                self._pending = next(self._packets, None)
            packet = self._pending
            if packet is None or float(packet.dts * packet.time_base) > until:
                return
            self._output.mux(packet)
            self._pending = None

    def _discard(self) -> None:
        """Closes everything and removes the partial file, if it is still there."""
        output = getattr(self, "_output", None)
        if output is not None:
            with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                output.close()
        self._packets = iter(())
        self._stack.close()
        partial.remove(self._partial)

    def _cannot_write(self, error: OSError | av.FFmpegError) -> errors.BadValueError:
        return errors.BadValueError(f"cannot write {self.path!r}: {error.strerror or error}.")


def check_output(path: str, source: str) -> None:
    """Makes the folder of a film to be written and sees that it can be written there.

    Raises:
      BadValueError: `path` is `source` itself or a folder, its name is no container's that keeps
        the times of pictures, or its folder cannot be made or written in.
    """
    if os.path.exists(path) and os.path.samefile(path, source):
        raise errors.BadValueError(f"the output {path!r} is the input video; give it another name.")
    if os.path.isdir(path):
        raise errors.BadValueError(f"the output {path!r} is a folder; wanted a file, e.g. out.mp4.")
    trial = check_folder(os.path.abspath(path))
    try:
        with av.open(local_file(trial), "w") as output:
            flags = output.format.flags
    except (av.FFmpegError, ValueError) as error:
        raise _no_container(path, f"no container goes by this name ({error})") from error
    finally:
        partial.remove(trial)
    if not flags & _VARIABLE_RATE:
        raise _no_container(path, "its pictures could not keep their times")


def check_folder(path: str) -> str:
    """Makes the folder of something to be written, and sees that it can be written there.

    Returns:
      The path of a file beside `path`, with its suffix, that does not exist.

    Raises:
      BadValueError: the folder cannot be made or written in.
    """
    folder, name = os.path.split(path)
    trial = os.path.join(folder, f".trial-{os.getpid()}-{name}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(trial, "wb"):
            pass
        os.remove(trial)
    except OSError as error:
        raise errors.BadValueError(
            f"cannot write to the folder {folder!r}: {error.strerror}; choose another output."
        ) from error
    return trial


def _no_container(path: str, reason: str) -> errors.BadValueError:
    return errors.BadValueError(
        f"cannot write {path!r}: {reason}. Wanted a container for H.264 video and AAC sound: use a "
        "name ending in .mp4, .mov or .mkv."
    )


def _begin(track, first: av.Packet | None, otherwise: float) -> float:
    """When a sound track is heard first, on the film's clock."""
    if first is None:
        return otherwise
    begin = float(first.pts * first.time_base)
    # The header leaves out the samples that some codecs put in front; but it does not know of
    # clocks that jump.
    header = begin if track.start_time is None else float(track.start_time * track.time_base)
    return header if abs(header - begin) < 1 else begin


def _copy_packets(packets: Iterator[av.Packet], copy, zero: float) -> Iterator[av.Packet]:
    """Packets of sound for the stream `copy`, as they are but for their stamps.

    Time `zero` of the film's clock becomes 0. Stamps are put on the new container's time base
    before they are compared: it takes rising ones only, and ticks that differ on a finer base may
    be one here. A packet that repeats what was written, where recordings overlap, is left out.
    """
    last, until = None, None
    for packet in packets:
        tick = copy.time_base  # not known before the header is written
        begin = packet.pts * packet.time_base - Fraction(zero)
        length = packet.duration * packet.time_base
        if until is not None and length and begin + length / 2 < until:
            continue
        pts = round(begin / tick)
        pts = pts if last is None else max(pts, last + 1)
        last, until = pts, begin + length
        packet.time_base = tick
        packet.pts = packet.dts = pts
        packet.duration = round(length / tick)
        packet.stream = copy
        yield packet


def _encode_sound(info: VideoInfo, encoder, zero: float) -> Iterator[av.Packet]:
    """The film's sound from time `zero` of its clock on, encoded anew, with silence in gaps."""
    context = encoder.codec_context
    rate, count = context.sample_rate, 0
    blocks = ((block.time, block.rate, block.samples) for block in decode_sound(info))
    blocks = fill_gaps(blocks, zero)
    channels = context.layout.nb_channels
    blocks = ((old_rate, _with_channels(samples, channels)) for old_rate, samples in blocks)
    for samples in resample(blocks, rate):
        for part in np.split(samples, range(_BLOCK, samples.shape[1], _BLOCK), axis=1):
            if not part.size:
                continue
            part = np.ascontiguousarray(np.clip(part, -1, 1))
            frame = av.AudioFrame.from_ndarray(part, "fltp", context.layout.name)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = count
            count += part.shape[1]
            yield from encoder.encode(frame)
    yield from encoder.encode(None)


def _with_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    if len(samples) == channels:
        return samples
    return samples.mean(0, keepdims=True) if channels == 1 else np.repeat(samples, channels, 0)
