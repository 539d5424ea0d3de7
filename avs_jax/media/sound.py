"""The sound of a film as a stream of samples on the film's clock (PyAV).

Two channels are averaged, more are mixed down to stereo first: AVSBench's sound went through
ffmpeg's stereo downmix and VGGish's mean. Of ambisonic sound (360-degree cameras), which FFmpeg
cannot mix, the omnidirectional channel is heard.
"""

import itertools
import json
import logging
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import numpy as np
import soxr

from avs_jax import errors
from avs_jax.media import sound_probe
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.film import VideoInfo, decode_film, open_film, sound_stream
from avs_jax.types import Float

_log = logging.getLogger(__name__)

# Seconds by which a sound track's time stamps may stray from its sample count: Matroska rounds
# stamps to 1 ms, others are off by up to a packet (AAC and MP2: 20-26 ms); two lost packets show.
_GAP = 0.03
_AUDIBLE, _CANCELLED = 1e-3, 0.03  # of full scale; of the channels' level: -30 dB
_CHILD_SECONDS = 60
_CHILD = [sys.executable, sound_probe.__file__]


def probe_sound(path: str) -> tuple[int, int, str]:
    """(sample rate, channels, what is missing) of a film's sound track.

    PyAV ends the process, without an exception, on channels in an order that FFmpeg has no name
    for. Where that might be so, another process looks first.
    """
    with open_film(path) as container:
        stream = sound_stream(container)
        if stream is None:
            return 0, 0, "no audio track"
        if stream.codec_context is None:
            return 0, 0, "an audio track for which there is no decoder"
        is_known = sound_probe.has_known_order(container, stream)
    found = sound_probe.probe(path) if is_known else _probe_in_child(path)
    if found.get("died"):
        return 0, 0, f"an audio track that cannot be read here ({found['died']})"
    if not found["samples"]:
        return 0, 0, "an audio track of zero length"
    if not found["mixes"]:
        channels = f"{found['channels']} channels in the layout {found['layout']!r}"
        return 0, 0, f"sound that cannot be mixed down ({channels}, which FFmpeg does not know)"
    return found["rate"], found["channels"], ""


def _probe_in_child(path: str) -> dict:
    try:
        child = subprocess.run(
            [*_CHILD, str(pathlib.Path(path).absolute())],
            capture_output=True,
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"died": f"the decoder took more than {_CHILD_SECONDS} s"}
    if child.returncode:
        return {"died": "its channels are in an order that PyAV ends the process on"}
    return json.loads(child.stdout)


def read_sound(info: VideoInfo) -> Iterator[Float[np.ndarray, "s"]]:
    """Yields the sound from time 0 on, block by block: 16 kHz mono in [-1, 1].

    Gaps in the track become zeros. Sound that is lost by mixing (the channels are each other's
    opposite, or only the LFE channel sounds) is silence, and a warning says so.
    """
    before = after = 0.0  # the loudest that the channels and their mean are
    blocks = decode_sound(info)

    def average():
        nonlocal before, after
        for block in blocks:
            mono = block.samples.mean(axis=0, keepdims=True, dtype=np.float32)
            before = max(before, block.level)
            after = max(after, sound_probe.level(mono))
            yield block.time, block.rate, mono

    for samples in resample(fill_gaps(average(), info.start), SAMPLE_RATE):
        yield np.clip(samples[0], -1, 1)
    if before > _AUDIBLE and after < _CANCELLED * before:
        _log.warning(
            "%s: its sound is lost when its channels are mixed (they cancel out, or only the LFE "
            "channel sounds); it is heard as silence.",
            info.path,
        )


def read_sound_file(path: str) -> Float[np.ndarray, "s"]:
    """The whole sound of a file that need not have pictures, 16 kHz, channels averaged, in [-1, 1].

    Raises:
      NotFoundError: no such file.
      BadValueError: it holds no sound, or none that can be decoded.
    """
    # Its channels as they are: in floats FFmpeg mixes two to one that is 1.4 times as loud.
    resampler = av.AudioResampler("fltp", None, SAMPLE_RATE)
    parts = [np.zeros(0, np.float32)]
    with open_film(path) as container:
        stream = sound_stream(container)
        frames = container.decode(stream) if stream is not None else ()
        try:
            for frame in itertools.chain(frames, [None]):
                parts += [part.to_ndarray().mean(axis=0) for part in resampler.resample(frame)]
        except (av.FFmpegError, ValueError) as error:  # ValueError: other channels from there on
            raise errors.BadValueError(f"cannot read the sound of {path!r}: {error}.") from error
    samples = np.concatenate(parts)
    if not len(samples):
        raise errors.BadValueError(f"{path!r} holds no sound.")
    return np.clip(samples, -1, 1)


class Block(NamedTuple):
    """Samples of a film's sound in [-1, 1], one or two channels."""

    time: float | None  # on the film's clock; None: it follows the one before
    rate: int
    samples: Float[np.ndarray, "c s"]
    level: float  # of all the channels it was mixed from, root mean square


def decode_sound(info: VideoInfo) -> Iterator[Block]:
    """Yields the sound of a film as it comes, with its gaps; nothing if it has none."""
    if not info.has_audio:
        return
    mixers: dict[tuple, sound_probe.Mixer] = {}
    with open_film(info.path) as container:
        for frame in decode_film(info.path, container, sound_stream(container), report=True):
            time = None if frame.pts is None else float(frame.pts * frame.time_base)
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind not in mixers:
                mixers[kind] = sound_probe.Mixer(frame)
            samples = mixers[kind].mix(frame)
            if samples is not None:
                yield Block(time, frame.sample_rate, samples, mixers[kind].level)


def fill_gaps(blocks: Iterable[tuple], start: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (rate, samples [c s]) without gaps from time `start` of the film's clock on."""
    position, begun = start, False
    for stamp, rate, samples in blocks:
        gap = 0.0 if stamp is None else stamp - position
        if gap > (_GAP if begun else 0):
            for zeros in _zeros(round(gap * rate), rate, len(samples)):
                yield rate, zeros
            position += round(gap * rate) / rate
        elif gap < (-_GAP if begun else 0):
            samples = samples[:, round(-gap * rate) :]
        if samples.shape[1]:
            begun = True
            yield rate, samples
            position += samples.shape[1] / rate


def _zeros(count: int, block: int, channels: int) -> Iterator[np.ndarray]:
    for begin in range(0, count, block):
        yield np.zeros((channels, min(block, count - begin)), np.float32)


def resample(blocks: Iterable[tuple[int, np.ndarray]], rate: int) -> Iterator[np.ndarray]:
    """Yields the samples [c s] at another rate; theirs, and c, may change on the way."""
    kind, resampler = None, None
    for old_rate, block in blocks:
        if (old_rate, len(block)) != kind:
            if resampler is not None:
                yield _push(resampler, np.zeros((kind[1], 0), np.float32), last=True)
            kind = (old_rate, len(block))
            resampler = soxr.ResampleStream(old_rate, rate, len(block), dtype="float32")
        yield _push(resampler, block)
    if resampler is not None:
        yield _push(resampler, np.zeros((kind[1], 0), np.float32), last=True)


def _push(resampler, block: np.ndarray, last: bool = False) -> np.ndarray:
    # soxr takes [s c], and [s] for one channel.
    samples = resampler.resample_chunk(np.ascontiguousarray(block.T), last=last)
    return samples.reshape(-1, len(block)).T
