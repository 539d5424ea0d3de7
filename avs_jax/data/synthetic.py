"""Makes the embedded data set `sounding_shapes`: moving shapes, some of which sound.

    python -m avs_jax.data.synthetic --subset ms3 --data_dir DIR            builds it (once)
    python -m avs_jax.data.synthetic --mp4 DIR --split test --count 3     clips as videos with sound
    python -m avs_jax.data.synthetic --preview sheet.png                    a picture of some clips

Ten classes, each with a look and a timbre of its own (scenes.py, shapes.py, timbres.py). A clip
has one to three moving objects on a textured background; some are always silent, others sound in
some of its seconds. The label of a second is the class of what sounds in it, pixel-exact. Objects
look alike in both roles, so the picture alone cannot tell: perfect masks of all objects score
about 0.60 mIoU on the test split of `ms3`, predicting nothing 0.17 to 0.19.

    s4    one sounding object, the others silent; train is labelled on the first frame only
    ms3   each object silent or sounding; held-out scenes have two objects or more
    avss  as ms3, clips of 5 and of 10 seconds mixed

The builder is a TFDS one that writes ArrayRecord; TensorFlow is neither needed nor imported.
"""

import concurrent.futures
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import typing
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from avs_jax import errors
from avs_jax.data import scenes

NAME = "sounding_shapes"
SIZE = 96
CLIPS = {"s4": (1000, 60, 120), "ms3": (3000, 60, 220), "avss": (1000, 60, 120)}
_WORTH_A_PROCESS = 150  # clips; fewer are made sooner than another process starts
_CHUNK = 10  # clips that a process makes at a time


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """What to build: a subset, its picture size, the number of clips of each split, the seed."""

    size: int = SIZE
    clips: tuple[int, int, int] = (0, 0, 0)
    seed: int = 0


def make_config(
    subset: str, size: int = SIZE, clips: tuple[int, int, int] | None = None, seed: int = 0
) -> ShapesConfig:
    """Checks the request; raises UnknownNameError for the subset, BadValueError for the numbers."""
    if subset not in CLIPS:
        raise errors.unknown_name(f"subset of {NAME}", subset, CLIPS)
    clips = tuple(CLIPS[subset] if clips is None else clips)
    if len(clips) != 3 or min(clips) < 1:
        raise errors.BadValueError(
            f"clips={clips}: wanted three numbers of at least 1, for train, validation and test."
        )
    if size < 16:
        raise errors.BadValueError(f"size={size}: pictures need a side of at least 16 pixels.")
    return ShapesConfig(name=subset, size=size, clips=clips, seed=seed)


def _encode_image(pixels: np.ndarray) -> bytes:
    """PNG for masks [h w]; JPEG for frames [h w 3], near lossless, colour at full resolution."""
    if pixels.ndim == 2:
        return cv2.imencode(".png", pixels)[1].tobytes()
    flags = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    return cv2.imencode(".jpg", pixels[..., ::-1], flags)[1].tobytes()


def _make_record(subset: str, split: str, size: int, seed: int, index: int) -> dict:
    """A finished example with its pictures encoded; runs in a worker process."""
    plan = scenes.plan_clip(subset, split, index, seed)
    clip = scenes.render_clip(plan, size)
    labelled = 1 if subset == "s4" and split == "train" else plan.seconds
    return {
        "frames": [_encode_image(frame) for frame in clip.frames],
        "label": [_encode_image(label) for label in clip.label[:labelled]],
        "objects": [_encode_image(objects) for objects in clip.objects],
        "waveform": clip.waveform,
        "num_frames": plan.seconds,
        "num_labelled": labelled,
        "num_objects": len(plan.things),
        "id": f"{subset}/{split}/{index:06d}",
    }


def _make_records(make, count: int) -> Iterator[dict]:
    """`make(0)` ... `make(count - 1)` in order, by as many processes as there are free cores."""
    workers = min(len(os.sched_getaffinity(0)), count // _WORTH_A_PROCESS)
    if workers < 2:
        yield from map(make, range(count))
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads of jax
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        yield from pool.map(make, range(count), chunksize=_CHUNK)


class SoundingShapes(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder; use `build`, or `SoundingShapes(config=make_config("ms3"), ...)`."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    url_infos: typing.ClassVar[dict] = {}  # nothing is downloaded, so no checksums to look for

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        image = tfds.features.Image
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "frames": tfds.features.Sequence(
                        image(shape=(size, size, 3), encoding_format="jpeg")
                    ),
                    "label": tfds.features.Sequence(
                        image(shape=(size, size, 1), encoding_format="png")
                    ),
                    "objects": tfds.features.Sequence(
                        image(shape=(size, size, 1), encoding_format="png")
                    ),
                    "waveform": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding="bytes"
                    ),
                    "num_frames": np.int32,
                    "num_labelled": np.int32,
                    "num_objects": np.int32,
                    "id": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(seed=self.builder_config.seed),
            disable_shuffling=True,  # record i is clip i
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        counts = zip(scenes.SPLITS, self.builder_config.clips, strict=True)
        return {split: self._generate_examples(split, count) for split, count in counts}

    def _generate_examples(self, split: str, count: int):
        config = self.builder_config
        make = functools.partial(_make_record, config.name, split, config.size, config.seed)
        progress = tqdm.tqdm(
            _make_records(make, count), f"{NAME}/{config.name} {split}", count, unit="clip"
        )
        for index, record in enumerate(progress):
            for key in ("frames", "label", "objects"):
                record[key] = [io.BytesIO(encoded) for encoded in record[key]]
            yield index, record


def _check_same(builder: SoundingShapes) -> None:
    """What is on disk must be what was asked for; sizes and counts are not part of the path."""
    found = tfds.builder_from_directory(builder.data_path).info
    config = builder.builder_config
    there = {
        "size": found.features["frames"].feature.shape[0],
        "clips": tuple(found.splits[split].num_examples for split in scenes.SPLITS),
        "seed": (found.metadata or {}).get("seed"),
    }
    asked = {"size": config.size, "clips": config.clips, "seed": config.seed}
    if there != asked:
        raise errors.BadValueError(
            f"{builder.data_path} was built with {_spell(there)}, not {_spell(asked)}; "
            "choose another data directory or delete that one."
        )


def _spell(settings: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def build(
    data_dir: str | os.PathLike,
    subset: str = "ms3",
    size: int = SIZE,
    clips: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> str:
    """Builds a subset under `data_dir` unless it is there, and returns its folder.

    Raises:
      UnknownNameError, BadValueError: see `make_config`; also if the folder holds the subset in
      another
        size, number of clips or seed, or cannot be written.
    """
    config = make_config(subset, size, clips, seed)
    tfds.disable_progress_bar()  # ours tells more: it knows the totals
    try:
        builder = SoundingShapes(
            config=config, data_dir=os.fspath(data_dir), file_format="array_record"
        )
        if pathlib.Path(builder.data_path).exists():
            _check_same(builder)
        else:
            builder.download_and_prepare()
    except PermissionError as error:
        raise errors.BadValueError(f"cannot write {data_dir}: {error.strerror}.") from None
    return os.fspath(builder.data_path)
