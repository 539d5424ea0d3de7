"""Clips to calibrate a program on: of the data its model is for, or drawn on the spot."""

import os
import sys
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from avs_jax import errors
from avs_jax.data import SAMPLE_RATE, open_split, transforms
from avs_jax.data.sounding_shapes import scenes
from avs_jax.types import Float, UInt8

COUNT = 32
_SIDE = 224  # of what is drawn, before it is brought to the size that is asked for


def take_clips(
    data: ml_collections.FrozenConfigDict,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    data_dir: str | os.PathLike | None = None,
    count: int = COUNT,
) -> list[dict[str, UInt8[np.ndarray, "b t h w 3"] | Float[np.ndarray, "b s"]]]:
    """Batches of about `count` clips in all, two batches at least.

    Of the data set's validation split; where there is none, of `sounding_shapes`, and a line on
    stderr says so. Clips that are too short begin again.

    Args:
      data: of the model's config: name, subset, data_dir.
      inputs: shapes of "frames" and "waveform".
      data_dir: where the data set is, which then has to be there; None: where `data` has it.

    Raises:
      NotFoundError, BadValueError: there is no data set in `data_dir`, or it cannot be read.
    """
    b, t, height, width, _ = inputs["frames"].shape
    wanted = max(2, count // b) * b
    examples = _open(data, data_dir, wanted)
    clips = [_fit(*examples[i % len(examples)], t, height, width) for i in range(wanted)]
    frames, waveforms = (
        np.stack(part).reshape(-1, b, *part[0].shape) for part in zip(*clips, strict=True)
    )
    return [
        {"frames": picture, "waveform": sound}
        for picture, sound in zip(frames, waveforms, strict=True)
    ]


def _open(data, data_dir, wanted: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(frames, waveform) of at most so many clips, without the seconds that pad them."""
    try:
        source = open_split(data.name, data.subset, "validation", data_dir or data.data_dir)
    except errors.NotFoundError:
        if data_dir is not None:
            raise
        print(
            f"No {data.name} in {data.data_dir}: calibrated on drawings (sounding_shapes); better "
            "on clips like those it is for, which --data_dir names.",
            file=sys.stderr,
        )
        return [_draw(index) for index in range(wanted)]
    examples = (source[i] for i in range(min(wanted, len(source))))
    return [
        (x["frames"][x["frame_mask"]], x["waveform"][: SAMPLE_RATE * x["frame_mask"].sum()])
        for x in examples
    ]


def _draw(index: int) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "s"]]:
    clip = scenes.render_clip(scenes.plan_clip("ms3", "validation", index), _SIDE)
    return clip.frames, clip.waveform.astype(np.float32) / np.float32(32768)


def _fit(frames, waveform, t: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    frames = transforms.resize_frames(frames, height, width)
    return frames[np.arange(t) % len(frames)], np.resize(waveform, t * SAMPLE_RATE)
