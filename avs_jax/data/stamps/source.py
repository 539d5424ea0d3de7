"""Clips of `stamps` made when they are asked for, in place of a data set on disk.

    source = StampsSource(Media("data/media"), "train", count=20_000)
    source[3]["frames"], source[3]["waveform"], source[3]["label"]

Takes the place of what `avs_jax.data.open_split` returns, and gives the same examples as a data set
that `build.py` made of the same media and seed.
"""

import os
import pathlib

import numpy as np

from avs_jax import errors
from avs_jax.data.stamps.media import MANIFEST, Media
from avs_jax.data.stamps.painting import decode_jpeg
from avs_jax.data.stamps.scenes import SECONDS, Clip, Plan, Scenes

SIZE = 224
# Clips of each split; of training a number that no run uses up.
CLIPS = {"train": 100_000, "validation": 100, "test": 220, "cross": 220}


class StampsSource:
    """Random access to clips that are made on the fly.

    Args:
      media, split, size, seed, weak, drawings: see `Scenes`.
      count: how many; None: `CLIPS`.
      subset: what examples call themselves; clips of "ms3" and "avss" are the same.

    Raises:
      UnknownNameError, BadValueError: see `Scenes`.
    """

    def __init__(
        self,
        media: Media,
        split: str,
        count: int | None = None,
        *,
        subset: str = "ms3",
        size: int = SIZE,
        seed: int = 0,
        weak: bool = False,
        drawings: bool = False,
    ):
        self.scenes = Scenes(media, split, size, seed, weak, drawings)
        self.seconds, self.subset = SECONDS, subset
        self._count = CLIPS[split] if count is None else count
        self.name = f"stamps/{split}"

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"StampsSource({self.name!r}, {len(self)} clips of {self.seconds} s, made when read)"

    def __getitem__(self, index) -> dict:
        """An example of the batch contract; raises IndexError beyond the last."""
        return self.takes(index, 1)[0]

    def takes(self, index: int, count: int, near: float = 0.0) -> list[dict]:
        """`count` examples of the same pictures: clip `index`, and with other sounds.

        near: share of clips whose things fill the picture.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {self!r}")
        index %= len(self)
        plan = self.scenes.plan(index, near)
        clip = self.scenes.render(plan)
        examples = [self._make_example(index, plan, clip)]
        for take in range(1, count):
            other = self.scenes.retake(plan, take)
            sound = self.scenes.record(other).astype(np.float32) / np.float32(32768)
            label = self.scenes.label(other, clip.instances)
            examples.append(examples[0] | {"waveform": sound, "label": label})
        return examples

    def _make_example(self, index: int, plan: Plan, clip: Clip) -> dict:
        every = np.ones(SECONDS, bool)
        return {
            "frames": np.stack([decode_jpeg(jpeg) for jpeg in clip.jpegs]),
            "waveform": clip.waveform.astype(np.float32) / np.float32(32768),
            "label": clip.label,
            "objects": clip.objects,
            "instances": clip.instances,
            "num_objects": np.int32(len(plan.things)),
            "label_mask": every,
            "frame_mask": every.copy(),
            "id": f"{self.name}/{index:06d}",
            "subset": self.subset,
        }


def open_live(subset: str, split: str, data_dir: str | os.PathLike) -> StampsSource | None:
    """What `avs_jax.data.open_split` gives where data_dir is a folder of media; None elsewhere.

    Raises:
      UnknownNameError, BadValueError: see `parse_slice` and `Media`.
    """
    if not (pathlib.Path(data_dir) / MANIFEST).is_file():
        return None
    name, count = parse_slice(split, CLIPS)
    return StampsSource(Media(data_dir), name, count, subset=subset)


def parse_slice(split: str, counts: dict[str, int]) -> tuple[str, int]:
    """ "train[:100]" -> ("train", 100); "test" -> ("test", all of it).

    Raises:
      UnknownNameError: for the split. BadValueError: another slice than from the beginning.
    """
    name, bracket, rest = split.partition("[")
    if name not in counts:
        raise errors.unknown_name("split of stamps", split, counts)
    if not bracket:
        return name, counts[name]
    number = rest.removeprefix(":").removesuffix("]")
    if not (rest.startswith(":") and rest.endswith("]") and number.isdigit()):
        raise errors.BadValueError(f"{split!r} is no slice of clips made when read: 'train[:100]'.")
    return name, min(int(number), counts[name])
