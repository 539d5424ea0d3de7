"""Makes the data set `stamps`: real cut-outs over real photographs, with their real sounds.

    launch/fetch_media.sh data/media                                      once: the packages
    python -m avs_jax.data.stamps.build --media data/media --preview sheet.png     looks at it
    python -m avs_jax.data.stamps.build --media data/media --data_dir DIR          builds it

Building is not needed: programs that are given the media folder itself as data_dir make each clip
when it is read (`source.py`), the same ones. Built clips are read faster.

45 classes (53 with --weak), 1-4 things a clip that move, turn, grow and hide each other; some sound
in some of its 5 seconds, some clips have sounds from outside the picture. Labels are the class ids
of what sounds, exact to the pixel; `objects` those of all things, `instances` their numbers.

    ms3, avss  the same clips, for "does it sound?" and for names
    splits     train, validation, test; cross: pictures and sounds of tuxpaint, of classes that
               learned from gcompris alone

These are composites of few pictures: results are a demonstration and a regression set, and never to
be put beside AVSBench's. The builder is a TFDS one that writes ArrayRecord, without TensorFlow.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import time
import typing
from collections.abc import Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging

from avs_jax import errors
from avs_jax.data.stamps import classes, painting
from avs_jax.data.stamps.media import SPLITS, Media
from avs_jax.data.stamps.scenes import SECONDS, Clip, Scenes
from avs_jax.data.stamps.source import SIZE

NAME = "stamps"
SUBSETS = ("ms3", "avss")
CLIPS = (2000, 100, 220, 220)


@dataclasses.dataclass(eq=False, kw_only=True)
class StampsConfig(tfds.core.BuilderConfig):
    """What to build: the media folder, picture size, clips of each split, seed, weak classes."""

    media: str = ""
    size: int = SIZE
    clips: tuple[int, ...] = CLIPS
    seed: int = 0
    weak: bool = False


def make_config(
    media: str | os.PathLike,
    subset: str = "ms3",
    size: int = SIZE,
    clips: Sequence[int] = CLIPS,
    seed: int = 0,
    weak: bool = False,
) -> StampsConfig:
    """Checks the request; raises UnknownNameError for the subset, BadValueError for the numbers."""
    if subset not in SUBSETS:
        raise errors.unknown_name(f"subset of {NAME}", subset, SUBSETS)
    clips = tuple(clips)
    if len(clips) != len(SPLITS) or min(clips) < 1:
        raise errors.BadValueError(
            f"clips={clips}: wanted {len(SPLITS)} numbers of at least 1, for {', '.join(SPLITS)}."
        )
    if size < 32:
        raise errors.BadValueError(f"size={size}: pictures need a side of at least 32 pixels.")
    return StampsConfig(
        name=subset, media=os.fspath(media), size=size, clips=clips, seed=seed, weak=weak
    )


def _encode_png(mask: np.ndarray) -> io.BytesIO:
    return io.BytesIO(cv2.imencode(".png", mask)[1].tobytes())


def _make_record(scenes: Scenes, subset: str, index: int) -> dict:
    """A finished example with its pictures encoded."""
    plan = scenes.plan(index)
    clip: Clip = scenes.render(plan)
    masks = {"label": clip.label, "objects": clip.objects, "instances": clip.instances}
    return {name: [_encode_png(mask) for mask in found] for name, found in masks.items()} | {
        "frames": [io.BytesIO(jpeg) for jpeg in clip.jpegs],
        "waveform": clip.waveform,
        "num_frames": SECONDS,
        "num_labelled": SECONDS,
        "num_objects": len(plan.things),
        "id": f"{NAME}/{scenes.split}/{index:06d}",
        "subset": subset,
    }


class Stamps(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder; use `build`, or `Stamps(config=make_config(MEDIA), ...)`."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    url_infos: typing.ClassVar[dict] = {}  # nothing is downloaded, so no checksums to look for

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config

        def pictures(channels: int, encoding: str):
            shape = (config.size, config.size, channels)
            image = tfds.features.Image(shape=shape, encoding_format=encoding)
            return tfds.features.Sequence(image)

        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "frames": pictures(3, "jpeg"),
                    "label": pictures(1, "png"),
                    "objects": pictures(1, "png"),
                    "instances": pictures(1, "png"),
                    "waveform": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding="bytes"
                    ),
                    "num_frames": np.int32,
                    "num_labelled": np.int32,
                    "num_objects": np.int32,
                    "id": tfds.features.Text(),
                    "subset": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(
                seed=config.seed, weak=config.weak, media=Media(config.media).digest()
            ),
            disable_shuffling=True,  # record i is clip i
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        counts = zip(SPLITS, self.builder_config.clips, strict=True)
        return {split: self._generate_examples(split, count) for split, count in counts}

    def _generate_examples(self, split: str, count: int):
        config = self.builder_config
        media = Media(config.media)
        scenes = Scenes(media, split, config.size, config.seed, config.weak)
        for index in tqdm.tqdm(range(count), f"{NAME}/{config.name} {split}", unit="clip"):
            yield index, _make_record(scenes, config.name, index)


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


def _check_same(builder: Stamps) -> None:
    """What is on disk must be what was asked for; sizes and counts are not part of the path."""
    found = tfds.builder_from_directory(builder.data_path).info
    config, metadata = builder.builder_config, found.metadata or {}
    there = {
        "size": found.features["frames"].feature.shape[0],
        "clips": tuple(found.splits[split].num_examples for split in SPLITS),
    } | {name: metadata.get(name) for name in ("seed", "weak", "media")}
    asked = {"size": config.size, "clips": config.clips, "seed": config.seed}
    asked |= {"weak": config.weak, "media": Media(config.media).digest()}
    if there != asked:
        spell = [", ".join(f"{k}={v}" for k, v in settings.items()) for settings in (there, asked)]
        raise errors.BadValueError(
            f"{builder.data_path} was built with {spell[0]}, not {spell[1]}; choose another data "
            "directory or delete that one."
        )


def build(data_dir: str | os.PathLike, config: StampsConfig) -> str:
    """Builds a subset under `data_dir` unless it is there, and returns its folder.

    Raises:
      NotFoundError: no media. BadValueError: media of another version; the folder holds the subset
      in another form, or cannot be written.
    """
    try:
        with _quiet_tfds():
            builder = Stamps(
                config=config, data_dir=os.fspath(data_dir), file_format="array_record"
            )
            folder = pathlib.Path(builder.data_path)
            if (folder / "dataset_info.json").exists():
                _check_same(builder)
            elif folder.exists():
                raise errors.BadValueError(f"{folder} is damaged; delete it and build again.")
            else:
                builder.download_and_prepare()
    except OSError as error:
        if isinstance(error, errors.InputError):
            raise
        raise errors.BadValueError(f"cannot write {data_dir}: {error.strerror or error}.") from None
    return os.fspath(builder.data_path)


def draw_sheet(scenes: Scenes, count: int) -> np.ndarray:
    """Clips below each other, their seconds side by side; silent things outlined in yellow, what
    sounds in red: u8[h w 3]."""
    rows = []
    for index in range(count):
        clip = scenes.render(scenes.plan(index))
        frames = []
        for second in range(SECONDS):
            frame = painting.decode_jpeg(clip.jpegs[second]).copy()
            sounding = clip.instances[second] * (clip.label[second] > 0)
            for mask, colour in ((clip.instances[second], (255, 255, 0)), (sounding, (255, 0, 0))):
                inner = np.pad(mask, 1, mode="edge")
                edge = (inner[2:, 1:-1] != mask) | (inner[1:-1, 2:] != mask)
                frame[edge & (mask > 0)] = colour
            frames.append(frame)
        rows.append(np.concatenate(frames, axis=1))
    return np.concatenate(rows)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and does what it says; raises errors.InputError."""
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.data.stamps.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--media", default="data/media", help="folder of launch/fetch_media.sh")
    parser.add_argument("--data_dir", help="build the subset here; reuses what is there")
    parser.add_argument("--subset", default="ms3", help=f"{' or '.join(SUBSETS)} (default: ms3)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"pixels (default: {SIZE})")
    parser.add_argument(
        "--clips",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        default=CLIPS,
        metavar="N,N,N,N",
        help=f"clips of {', '.join(SPLITS)} (default: {','.join(map(str, CLIPS))})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--weak", action="store_true", help="also what a tagger does not recognise")
    parser.add_argument("--preview", metavar="FILE", help="write a picture of some clips")
    parser.add_argument("--split", default="test", help="of --preview (default: test)")
    parser.add_argument("--count", type=int, default=6, help="clips of these (default: 6)")
    args = parser.parse_args(arguments)
    if not (args.data_dir or args.preview):
        parser.error("nothing to do: give --data_dir or --preview")
    config = make_config(args.media, args.subset, args.size, args.clips, args.seed, args.weak)
    if args.preview:
        scenes = Scenes(Media(args.media), args.split, args.size, args.seed, args.weak)
        if not cv2.imwrite(args.preview, draw_sheet(scenes, args.count)[..., ::-1]):
            raise errors.BadValueError(f"cannot write {args.preview}: wanted e.g. sheet.png.")
        print(f"preview: {args.preview}")
    if args.data_dir:
        start = time.monotonic()
        folder = build(args.data_dir, config)
        counts = ", ".join(f"{n} {split}" for n, split in zip(config.clips, SPLITS, strict=True))
        print(f"{folder}: {counts} clips of {len(classes.CLASSES) - 2} classes at most", end=", ")
        print(f"ready after {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    errors.run_program(main)
