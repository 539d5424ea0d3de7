"""What a clip is heard with instead of its own sound, to find out what a model does with sound.

    mute, noise, offscreen   nothing that is visible sounds: every mask should be empty
    swap, shift              another clip's sound, the clip's own a second late: masks should change

AVSBench-Robust (arXiv 2502.00358) names the first three. mute and swap are the input pipeline's;
the others are made here, the same in every run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax import errors
from avs_jax.data import SAMPLE_RATE, pipeline

NEGATIVE = ("mute", "noise", "offscreen")  # sounds that belong to nothing in the picture
MISPLACED = ("swap", "shift")
SOUNDS = ("own", *NEGATIVE, *MISPLACED)

_SEED = 42  # AVSBench-Robust's


class Heard:
    """A source whose clips have another sound, and carry their place in the split as `index` i32[].

    Args:
      source: see `avs_jax.data.open_split`.
      sound: of SOUNDS; mute and swap leave the sound to the pipeline (see `pipeline_sound`).
      others: for offscreen, whose sound each clip gets; see `choose_offscreen`.
    """

    def __init__(self, source: Any, sound: str = "own", others: Sequence[int] | None = None):
        if sound not in SOUNDS:
            raise errors.unknown_name("sound", sound, SOUNDS)
        self._source = source
        self._sound = sound
        self._others = others

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return repr(self._source)

    def __getitem__(self, index) -> dict:
        example = dict(self._source[index])
        example["index"] = np.int32(index)
        if self._sound == "noise":
            length = example["waveform"].shape[0]
            rng = np.random.default_rng((_SEED, int(index)))
            example["waveform"] = rng.uniform(-1.0, 1.0, length).astype(np.float32)
        elif self._sound == "shift":
            example["waveform"] = delay(example["waveform"], int(example["frame_mask"].sum()))
        elif self._sound == "offscreen":
            other = self._source[self._others[index]]
            example["waveform"] = pipeline.borrow_sound(other, len(example["waveform"]))
        return example


def pipeline_sound(sound: str) -> str:
    """What to ask of `pipeline.eval_batches` for the batches of `Heard(source, sound)`."""
    return sound if sound in pipeline.SOUNDS else "own"


def delay(waveform: np.ndarray, seconds: int) -> np.ndarray:
    """The sound a second late; its last second comes first, so that loudness stays the same.

    `seconds` is the clip's own length, without padding.
    """
    length = seconds * SAMPLE_RATE
    return np.concatenate([np.roll(waveform[:length], SAMPLE_RATE), waveform[length:]])


def choose_offscreen(
    visible: Sequence[frozenset[str]], sounding: Sequence[frozenset[str]]
) -> list[int]:
    """For every clip another one, in which something sounds that the first does not show.

    Args:
      visible: the classes in each clip's pictures, as far as they are known.
      sounding: the classes in each clip's sound; empty where unknown or silent.

    Raises:
      BadValueError: a clip for which there is none; the classes are unknown or all the same.
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
            raise errors.BadValueError(
                f"clip {clip} has no other with a sound that it does not show: classes are unknown "
                "in this data set, or the split is too small; leave out the off-screen test."
            )
    return chosen
