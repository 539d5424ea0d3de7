"""Clips from arrays in memory, as `video.read_clips` makes them from a film."""

from collections.abc import Iterator

import numpy as np

from avs_jax import errors
from avs_jax.media.audio import SAMPLE_RATE, resample
from avs_jax.media.video import Clip, fit_picture
from avs_jax.types import Float, UInt8

_LOUDEST = 10.0  # floats above it are no samples in [-1, 1], however loud the mix
_MOST_CHANNELS = 64


def check_frames(frames) -> UInt8[np.ndarray, "t h w 3"]:
    """Raises BadValueError for what are no pictures."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise errors.BadValueError(
            f"frames are {frames.dtype}{list(frames.shape)}; wanted uint8[t h w 3], RGB, 0..255, "
            "one frame or more."
        )
    return frames


def prepare_sound(waveform, sample_rate: int | float) -> Float[np.ndarray, "s"]:
    """Any rate, one channel [s] or several [s c], floats in [-1, 1] or int16 -> 16 kHz mono.

    Raises:
      BadValueError: another type or shape, numbers that are no samples, a rate that is not
        positive.
    """
    waveform = np.asarray(waveform)
    is_float = np.issubdtype(waveform.dtype, np.floating)
    if not is_float and waveform.dtype != np.int16:
        raise errors.BadValueError(
            f"waveform is {waveform.dtype}; wanted floats in [-1, 1], or int16."
        )
    channels = 1 if waveform.ndim == 1 else waveform.shape[-1]
    if waveform.ndim not in (1, 2) or not 1 <= channels <= _MOST_CHANNELS:
        raise errors.BadValueError(
            f"waveform has the shape {list(waveform.shape)}; wanted [s], or [s c] with the "
            "channels last."
        )
    samples = waveform.astype(np.float32) / (1.0 if is_float else 32768.0)
    loudest = np.abs(samples).max(initial=0.0)
    if not loudest <= _LOUDEST:
        raise errors.BadValueError(
            f"the largest sample of waveform is {loudest:g}; wanted floats in [-1, 1], e.g. "
            "those of 16 bits divided by 32768."
        )
    return np.clip(resample(samples, sample_rate), -1, 1)


def spread_frames(count: int, seconds: float, frames_per_second: int | float | None) -> np.ndarray:
    """When the frames are on screen, f64[t] in seconds: the middle of each.

    Args:
      seconds: length of the sound, which they are spread evenly over if `frames_per_second` is
        None.

    Raises:
      BadValueError: no rate is given and there is no sound, or one that is not positive.
    """
    if frames_per_second is None and seconds <= 0:
        raise errors.BadValueError(
            "waveform has no samples, over which frames could be spread; give frames_per_second."
        )
    rate = count / seconds if frames_per_second is None else frames_per_second
    if not 0 < rate < np.inf:
        raise errors.BadValueError(
            f"frames_per_second={frames_per_second}: wanted a positive number."
        )
    return (np.arange(count) + 0.5) / rate


def cut_clips(
    frames: UInt8[np.ndarray, "n h w 3"],
    times: Float[np.ndarray, "n"],
    sound: Float[np.ndarray, "s"],
    *,
    seconds: int,
    frame_offset: float,
    size: int,
) -> Iterator[tuple[Clip, np.ndarray]]:
    """Yields clips that have every frame once, and which of the frames are theirs, i64[t].

    Frames of a clip are a second apart, or as near to it as they come; each has its own second of
    the sound, from `frame_offset` before it on as in training, or the first or last full second
    where that would reach over an end. What is left at the end comes in a clip that reaches back
    (frames that a clip before had are -1), and fewer frames than a clip has are padded with masked
    ones.

    Args:
      times: of the frames, rising, in seconds.
      sound: 16 kHz mono; silence after its end.
      seconds, frame_offset, size: of the model, see `video.read_clips`.
    """
    count = len(frames)
    gaps = np.diff(times)
    step = max(1, round(1 / float(np.median(gaps)))) if len(gaps) else 1
    end = max(len(sound) / SAMPLE_RATE, float(times[-1]))
    latest = max(0.0, end - 1)
    begins = np.rint(np.clip(times - frame_offset, 0, latest) * SAMPLE_RATE).astype(int)
    sound = np.pad(sound, (0, max(0, begins.max() + SAMPLE_RATE - len(sound))))
    for index, start in enumerate(range(0, count, step * seconds)):
        for phase in range(step):
            new = np.arange(start + phase, min(start + step * seconds, count), step)
            if not len(new):
                break
            chosen = new[-1] - step * np.arange(seconds)[::-1]  # reaches back
            if len(new) < seconds and chosen[0] < 0:
                chosen = start + phase + step * np.arange(seconds)
            exists = (chosen >= 0) & (chosen < count)
            is_new = exists & (chosen >= start)
            clip = Clip(
                index,
                np.where(is_new, times[np.clip(chosen, 0, count - 1)], np.nan),
                np.zeros((seconds, size, size, 3), np.uint8),
                np.zeros(seconds * SAMPLE_RATE, np.float32),
                exists,
            )
            for i in np.flatnonzero(exists):
                begin = begins[chosen[i]]
                clip.frames[i] = fit_picture(frames[chosen[i]], size)
                second = slice(i * SAMPLE_RATE, (i + 1) * SAMPLE_RATE)
                clip.waveform[second] = sound[begin : begin + SAMPLE_RATE]
            yield clip, np.where(is_new, chosen, -1)
