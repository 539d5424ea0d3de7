"""Makes the embedded data set `sounding_shapes`: moving shapes, some of which sound.

    python -m avs_jax.data.sounding_shapes.build --subset ms3 --data_dir DIR    builds it (once)
    ... --mp4 DIR --split test --count 3                      clips as videos with sound
    ... --preview sheet.png                                   a picture of some clips

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

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import time
import typing
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging

from avs_jax import errors
from avs_jax.data.sounding_shapes import scenes
from avs_jax.data.sounding_shapes.films import write_mp4

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
    subset: str, size: int = SIZE, clips: Sequence[int] | None = None, seed: int = 0
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


def _count_cores() -> int:
    """Cores this process may use, where the system tells; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_records(make, count: int) -> Iterator[dict]:
    """`make(0)` ... `make(count - 1)` in order, by as many processes as there are free cores."""
    workers = min(_count_cores(), count // _WORTH_A_PROCESS)
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


@contextlib.contextmanager
def _quiet_tfds():
    """Keeps TFDS from talking of downloads of unknown size; our progress bar knows the totals."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _remove_empty(downloads: pathlib.Path) -> None:
    """TFDS makes these folders even if nothing is downloaded; with files in them they stay."""
    for folder in (downloads / "extracted", downloads):
        with contextlib.suppress(OSError):
            folder.rmdir()


def build(
    data_dir: str | os.PathLike,
    subset: str = "ms3",
    size: int = SIZE,
    clips: Sequence[int] | None = None,
    seed: int = 0,
) -> str:
    """Builds a subset under `data_dir` unless it is there, and returns its folder.

    Raises:
      UnknownNameError, BadValueError: see `make_config`; also if the folder holds the subset in
      another
        size, number of clips or seed, or cannot be written.
    """
    config = make_config(subset, size, clips, seed)
    try:
        with _quiet_tfds():
            builder = SoundingShapes(
                config=config, data_dir=os.fspath(data_dir), file_format="array_record"
            )
            folder = pathlib.Path(builder.data_path)
            if (folder / "dataset_info.json").exists():
                _check_same(builder)
            elif folder.exists():
                raise errors.BadValueError(f"{folder} is damaged; delete it and build again.")
            else:
                builder.download_and_prepare()
                _remove_empty(pathlib.Path(data_dir) / "downloads")
    except OSError as error:
        raise errors.BadValueError(f"cannot write {data_dir}: {error.strerror or error}.") from None
    return os.fspath(builder.data_path)


def _write_mp4s(folder: str, subset: str, split: str, count: int, seed: int, fps: int) -> None:
    os.makedirs(folder, exist_ok=True)
    for index in tqdm.tqdm(range(count), "mp4", unit="clip"):
        path = os.path.join(folder, f"{subset}_{split}_{index:06d}.mp4")
        write_mp4(scenes.plan_clip(subset, split, index, seed), path, fps)
    print(f"{count} clips with sound: {folder}")


def _write_preview(path: str, subset: str, split: str, count: int, seed: int) -> None:
    from avs_jax.data.sounding_shapes import preview

    sheet = preview.draw_sheet([scenes.plan_clip(subset, split, i, seed) for i in range(count)])
    if not cv2.imwrite(path, sheet[..., ::-1]):
        raise errors.BadValueError(f"cannot write {path}: wanted a picture file such as sheet.png.")
    print(f"preview: {path}")


def _parse_clips(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and does what it says; raises errors.InputError."""
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.data.sounding_shapes.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--subset", default="ms3", help="s4, ms3 or avss (default: ms3)")
    parser.add_argument("--data_dir", help="build the subset here; reuses what is there")
    parser.add_argument("--size", type=int, default=SIZE, help=f"pixels (default: {SIZE})")
    parser.add_argument(
        "--clips",
        type=_parse_clips,
        metavar="TRAIN,VALIDATION,TEST",
        help="number of clips (default: 3000,60,220 for ms3, else 1000,60,120)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--mp4", metavar="DIR", help="write clips as videos with sound")
    parser.add_argument("--preview", metavar="FILE", help="write a contact sheet of clips")
    parser.add_argument("--split", default="test", help="of --mp4 and --preview (default: test)")
    parser.add_argument("--count", type=int, default=4, help="clips of these (default: 4)")
    parser.add_argument("--fps", type=int, default=8, help="frames a second of --mp4 (default: 8)")
    args = parser.parse_args(arguments)
    if not (args.data_dir or args.mp4 or args.preview):
        parser.error("nothing to do: give --data_dir, --mp4 or --preview")
    make_config(args.subset, args.size, args.clips, args.seed)
    if args.data_dir:
        start = time.monotonic()
        folder = build(args.data_dir, args.subset, args.size, args.clips, args.seed)
        info = tfds.builder_from_directory(folder).info
        counts = ", ".join(f"{info.splits[split].num_examples} {split}" for split in scenes.SPLITS)
        megabytes = sum(path.stat().st_size for path in pathlib.Path(folder).iterdir()) / 1e6
        print(f"{folder}: {counts} clips of {args.size} px, {megabytes:.0f} MB", end=", ")
        print(f"ready after {time.monotonic() - start:.1f} s")
    if args.mp4:
        _write_mp4s(args.mp4, args.subset, args.split, args.count, args.seed, args.fps)
    if args.preview:
        _write_preview(args.preview, args.subset, args.split, args.count, args.seed)


if __name__ == "__main__":
    errors.run_program(main)
