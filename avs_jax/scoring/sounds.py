"""Sounds that a clip is scored with beside its own, to find out what a model does with sound.

    mute, noise, offscreen   nothing that is visible sounds: every mask should be empty
    swap, shift              another clip's sound, the clip's own a second late: masks should change

AVSBench-Robust (arXiv 2502.00358) names the first three. All are the same in every run, whatever
the batch size or the number of processes.
"""

import concurrent.futures
from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax import errors
from avs_jax.data import SAMPLE_RATE
from avs_jax.scoring.records import Clip, describe_clip, gather_clips

NEGATIVE = ("mute", "noise", "offscreen")  # sounds that belong to nothing in the picture
MISPLACED = ("swap", "shift")
SOUNDS = ("own", *NEGATIVE, *MISPLACED)
USUAL = ("own", "mute", "swap")  # what an evaluation reports unless asked for others

_SEED = 42  # AVSBench-Robust's


class NoOffscreenError(errors.BadValueError):
    """A clip has no other with a sound that it does not show."""


class Soundtracks:
    """A source whose clips carry several sounds at once, and their place in the split.

    Examples get `waveform/SOUND` f32[s] for every sound in the place of `waveform`, and `index`
    i32[].

    Args:
      source: see `avs_jax.data.open_split`.
      names: of SOUNDS.
      offscreen: for that sound, whose each clip gets; see `choose_offscreen`.

    Raises:
      UnknownNameError: for a name.
    """

    def __init__(
        self, source: Any, names: Sequence[str] = ("own",), offscreen: Sequence[int] | None = None
    ):
        for name in names:
            if name not in SOUNDS:
                raise errors.unknown_name("sound", name, SOUNDS)
        self._source = source
        self._names = tuple(names)
        self._offscreen = offscreen

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return repr(self._source)

    def __getitem__(self, index) -> dict:
        example = dict(self._source[index])
        own = example.pop("waveform")
        example["index"] = np.int32(index)
        for name in self._names:
            example[f"waveform/{name}"] = self._make(name, own, int(index), example["frame_mask"])
        return example

    def _make(self, name, own, index, frame_mask):
        if name == "mute":
            return np.zeros_like(own)
        if name == "noise":
            rng = np.random.default_rng((_SEED, index))
            return rng.uniform(-1.0, 1.0, own.shape[0]).astype(np.float32)
        if name == "shift":
            return delay(own, int(frame_mask.sum()))
        if (
            name == "swap"
        ):  # half the split away, whatever the batch size or the number of processes
            other = self._source[(index + len(self._source) // 2) % len(self._source)]
            return borrow_sound(other, len(own))
        if name == "offscreen":
            return borrow_sound(self._source[self._offscreen[index]], len(own))
        return own


def borrow_sound(other: dict, length: int) -> np.ndarray:
    """Another clip's sound f32[length], repeated where that clip is shorter (AVSS).

    Its padding is silence, with which a swapped sound would be partly a muted one.
    """
    seconds, padded = int(other["frame_mask"].sum()), len(other["frame_mask"])
    return np.resize(other["waveform"][: len(other["waveform"]) * seconds // padded], length)


def delay(waveform: np.ndarray, seconds: int) -> np.ndarray:
    """The sound a second late; its last second comes first, so that loudness stays the same.

    `seconds` is the clip's own length, without padding.
    """
    length = seconds * SAMPLE_RATE
    return np.concatenate([np.roll(waveform[:length], SAMPLE_RATE), waveform[length:]])


def describe_split(
    source: Any,
    kind: str,
    transforms: Sequence = (),
    num_threads: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> list[Clip]:
    """What is known of each clip of a split; every process reads its part and gets all.

    Args:
      kind, transforms: see `records.describe_clip` and `avs_jax.data.transforms`.
      num_threads: that read. shard: (process index, process count).
    """

    def describe(index):
        example = source[index]
        for transform in transforms:
            example = transform.map(example)
        return describe_clip(example, kind)

    ours = range(shard[0], len(source), shard[1])
    with concurrent.futures.ThreadPoolExecutor(max(num_threads, 1)) as threads:
        clips = gather_clips(dict(zip(ours, threads.map(describe, ours), strict=True)))
    return [clips[i] for i in sorted(clips)]


def choose_offscreen(
    visible: Sequence[frozenset[str]], sounding: Sequence[frozenset[str]]
) -> list[int]:
    """For every clip another one, in which something sounds that the first does not show.

    Args:
      visible: the classes in each clip's pictures, as far as they are known.
      sounding: the classes in each clip's sound; empty where unknown or silent.

    Raises:
      NoOffscreenError: a clip for which there is none; the classes are unknown or all the same.
    """
    rng = np.random.default_rng(_SEED)
    chosen = []
    for clip, seen in enumerate(visible):
        # Half the time the first pick fits; a full scan only where few do.
        for other in rng.permutation(len(sounding)):
            if sounding[other] and seen and not sounding[other] & seen:
                chosen.append(int(other))
                break
        else:
            raise NoOffscreenError(
                f"clip {clip} has no other with a sound that it does not show: classes are unknown "
                "in this data set, or the split is too small; leave out the off-screen test."
            )
    return chosen
