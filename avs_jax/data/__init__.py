"""Data sets by name, and their splits as random-access sources of decoded examples.

`DATASETS` says what there is. Every builder is a TFDS one that writes ArrayRecord with these
features, and `open_split` turns a record of any of them into an example of the batch contract
(see `avs_jax`):

    frames        Sequence(Image [h w 3])   num_frames pictures, JPEG or PNG, of any size
    label         Sequence(Image [h w 1])   PNG of mode L, class ids; the first num_labelled frames
    waveform      Tensor int16[s]           16 kHz mono
    num_frames    int                       seconds of the clip; shorter clips are padded
    num_labelled  int                       frames that carry a label
    id            Text
    objects       Sequence(Image [h w 1])   optional: ids of all objects, also silent ones;
    num_objects   int                       optional; for oracles and tests, never for training
    instances     Sequence(Image [h w 1])   optional: their numbers, from back to front
    subset        Text                      optional: the part of a mixed set, e.g. v1s
    category      Text                      optional: what sounds, for tables by class
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import sys
import typing
from collections.abc import Callable

import numpy as np
from etils import epath

from avs_jax import errors, paths
from avs_jax.data import bucket

SAMPLE_RATE = 16_000
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set of the house.

    Attributes:
      builder: "module:Class" of its TFDS builder, imported by `load_builder` only.
      class_names: "module:NAMES" of its classes by id, imported by `load_class_names` only.
      seconds: subset -> seconds (= frames) of its longest clips; all are padded to that.
      command: what a user types to build it, with {subset} and {data_dir} to fill in.
      live: "module:open_live" of a data set whose clips can be made when they are read, from what
        lies in data_dir; called (subset, split, data_dir), gives None where that is not there.
    """

    builder: str
    class_names: str
    seconds: dict[str, int]
    command: str
    live: str | None = None


DATASETS: dict[str, Dataset] = {
    "sounding_shapes": Dataset(
        builder="avs_jax.data.sounding_shapes.build:SoundingShapes",
        class_names="avs_jax.data.sounding_shapes.scenes:CLASSES",
        seconds={"s4": 5, "ms3": 5, "avss": 10},
        command="python -m avs_jax.data.sounding_shapes.build --subset {subset} "
        "--data_dir {data_dir}",
    ),
    "avsbench": Dataset(
        builder="avs_jax.data.avsbench.build:AVSBench",
        class_names="avs_jax.data.avsbench.classes:CLASS_NAMES",
        seconds={"s4": 5, "ms3": 5, "avss": 10},
        command="python -m avs_jax.data.avsbench.build {subset} SOURCE {data_dir}",
    ),
    "stamps": Dataset(
        builder="avs_jax.data.stamps.build:Stamps",
        class_names="avs_jax.data.stamps.classes:CLASSES",
        seconds={"ms3": 5, "avss": 5},
        command="launch/fetch_media.sh {data_dir}",  # the rest is made when it is read
        live="avs_jax.data.stamps.source:open_live",
    ),
}


def get_dataset(name: str) -> Dataset:
    """Raises UnknownNameError."""
    if name not in DATASETS:
        raise errors.unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def load_builder(name: str) -> type:
    """The TFDS builder class of a data set; raises UnknownNameError."""
    return _load(get_dataset(name).builder)


def load_class_names(name: str) -> tuple[str, ...]:
    """The classes of a data set by id, background first; raises UnknownNameError."""
    return _load(get_dataset(name).class_names)


def _load(place: str):
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def find_built(name: str, subset: str, data_dir: str | os.PathLike) -> epath.Path:
    """The folder of the newest built version of a subset.

    Raises:
      UnknownNameError: for a data set or subset that is not known.
      NotFoundError: nothing is built there, or half; the message says what command builds it.
    """
    dataset = get_dataset(name)
    if subset not in dataset.seconds:
        raise errors.unknown_name(f"subset of {name}", subset, dataset.seconds)
    command = dataset.command.format(subset=subset, data_dir=data_dir)
    root = paths.absolute(data_dir) if paths.in_bucket(data_dir) else epath.Path(data_dir)
    if not root.is_dir():
        raise errors.NotFoundError(f"no data directory {data_dir}; build it with: {command}")
    entries = list((root / name / subset).glob("*"))  # of a bucket: those that hold something
    versions = [path for path in entries if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    built = [path for path in versions if (path / "dataset_info.json").exists()]
    if built:
        return max(built, key=lambda path: [int(part) for part in path.name.split(".")])
    if entries:
        raise errors.NotFoundError(
            f"{root / name / subset} is only half built (its build was interrupted); "
            f"delete it and build it with: {command}"
        )
    raise errors.NotFoundError(f"no {name}/{subset} under {data_dir}; build it with: {command}")


@typing.runtime_checkable
class Examples(typing.Protocol):
    """What `open_split` gives: examples by number, decoded or made when they are read."""

    seconds: int  # of the longest clip; all are padded to that
    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index) -> dict: ...


class Source:
    """Random access to the decoded examples of one split; what `open_split` returns
    of a built data set.

    `source[i]` is a dict in the batch contract's format, without the batch axis: frames u8[t h w
    3], waveform f32[s], label u8[t h w], label_mask bool[t], frame_mask bool[t], id str, and
    where the data set has them objects u8[t h w], num_objects i32[]. Clips shorter than `seconds`
    are padded: black frames, background, silence, False masks. Frames have the size they have on
    disk.
    """

    def __init__(self, records, decode: Callable, seconds: int, name: str, cure: str):
        self._records = records  # bytes
        self._decode = decode
        self._cure = cure
        self.seconds = seconds
        self.name = name

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} clips of {self.seconds} s)"

    def __getitem__(self, index) -> dict:
        """Raises BadValueError if the record cannot be read (cut off or changed on disk)."""
        return self.decode(self.read(index), index)

    def read(self, index) -> bytes:
        """The record of a clip as it is on disk; raises as `source[index]` does."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {self!r}")
        with self._blame(index):
            return self._records[index % len(self)]

    def decode(self, record: bytes, index="?") -> dict:
        """What `read` gives -> the example."""
        with self._blame(index):
            return self._pad(self._decode(record))

    @contextlib.contextmanager
    def _blame(self, index):
        try:
            yield
        except Exception as error:  # of ArrayRecord, TFDS, OpenCV, PyAV, protobuf, the disk
            # One kind that every worker process can send back: it is made of its message alone.
            lines = str(error).partition(";")[0].partition(" (")[0].split("\n")
            reason = lines[0] or type(error).__name__
            raise errors.BadValueError(
                f"record {index} of {self.name} cannot be read ({reason}); {self._cure}"
            ) from error

    def _pad(self, record: dict) -> dict:
        seconds = self.seconds
        frames = record["frames"]
        height, width = frames[0].shape[:2]

        def lengthen(parts, shape: tuple[int, ...], dtype) -> np.ndarray:
            padded = np.empty((seconds, *shape), dtype)
            parts = parts[:seconds]
            for row, part in zip(padded, parts, strict=False):
                row[...] = part.reshape(shape)
            padded[len(parts) :] = 0
            return padded

        sound = record["waveform"][: seconds * SAMPLE_RATE]
        waveform = np.zeros(seconds * SAMPLE_RATE, np.float32)
        np.divide(sound, np.float32(32768), out=waveform[: len(sound)])
        second = np.arange(seconds)
        example = {
            "frames": lengthen(frames, (height, width, 3), np.uint8),
            "waveform": waveform,
            "label": lengthen(record["label"], (height, width), np.uint8),
            "label_mask": second < int(record["num_labelled"]),
            "frame_mask": second < int(record["num_frames"]),
            "id": record["id"].decode() if isinstance(record["id"], bytes) else str(record["id"]),
        }
        if "objects" in record:
            example["objects"] = lengthen(record["objects"], (height, width), np.uint8)
            example["num_objects"] = np.int32(record["num_objects"])
        if "instances" in record:
            example["instances"] = lengthen(record["instances"], (height, width), np.uint8)
        for key in ("subset", "category"):
            if key in record:
                example[key] = record[key].decode()
        return example


def _check_files(split, cure: str) -> None:
    """A look at every file of a split: damage shows now rather than after hours of training.

    ArrayRecord opens a file that was cut off, be it by a byte, as one without a record.
    """
    from array_record.python import array_record_module

    for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
        if not path.exists():
            raise errors.NotFoundError(f"{path} is gone; {cure}")
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records() if reader.ok() else 0
        if count != expected:
            raise errors.BadValueError(
                f"{path} cannot be read ({count} of {expected} records: cut off or damaged); {cure}"
            )
        reader.close()


def _bring_here(folder: epath.Path, split: str, cure: str) -> pathlib.Path:
    """A local copy of what describes a data set in a bucket, and of the files of a split (or of
    several: "train[:100]+test")."""
    parts = tuple(f"-{part.partition('[')[0]}." for part in split.split("+"))
    names = [path.name for path in folder.iterdir()]
    wanted = [n for n in names if n.endswith(".json") or any(part in n for part in parts)]
    try:
        return bucket.copy_here(folder, wanted)
    except FileNotFoundError as error:
        raise errors.NotFoundError(f"{error} is gone; {cure}") from error


def _open_live(name: str, subset: str, split: str, data_dir: str | os.PathLike) -> Examples | None:
    """The source of a data set that is made when it is read; None for others, and where one of
    that name is built."""
    dataset = get_dataset(name)
    if dataset.live is None or subset not in dataset.seconds or paths.in_bucket(data_dir):
        return None
    if (pathlib.Path(data_dir) / name / subset).exists():
        return None
    return _load(dataset.live)(subset, split, data_dir)


def open_split(name: str, subset: str, split: str, data_dir: str | os.PathLike) -> Examples:
    """Opens one split of a built data set.

    Args:
      name: of `DATASETS`.
      subset: of that data set, e.g. "ms3".
      split: "train", "validation", "test", or another that the data set has, e.g. "cross"; or a
        slice in TFDS's notation, e.g. "train[:100]".
      data_dir: where the data set was built; gs:// or s3:// too, see `bucket`. Of one whose clips
        are made when they are read, what they are made of.

    Raises:
      UnknownNameError: for a name that is not known; the message lists the known ones.
      NotFoundError: nothing is built there, or half, or files are gone; the message says the cure.
      BadValueError: the files are cut off or damaged, or the slice is not one.
    """
    live = _open_live(name, subset, split, data_dir)
    if live is not None:
        return live
    folder = find_built(name, subset, data_dir)
    command = DATASETS[name].command.format(subset=subset, data_dir=data_dir)
    cure = f"delete {folder} and build it with: {command}"
    import tensorflow_datasets as tfds  # 0.3 s that a bare import of the package need not pay

    from avs_jax.data import decoding

    if paths.in_bucket(folder):
        folder = _bring_here(folder, split, cure)
    builder = tfds.builder_from_directory(folder)
    base = re.split(r"[\[+]", split)[0]
    if base not in builder.info.splits:
        raise errors.unknown_name(f"split of {name}/{subset}", split, builder.info.splits)
    for part in dict.fromkeys(part.partition("[")[0] for part in split.split("+")):
        if part in builder.info.splits:  # else TFDS says below what it makes of it
            _check_files(builder.info.splits[part], cure)
    try:
        records = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except (ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise errors.BadValueError(f"{reason}; a slice reads e.g. 'train[:100]'.") from error
    if subset in ("s4", "ms3") and (builder.info.metadata or {}).get("labels") == "semantic":
        print(
            f"NOTE: {name}/{subset} at {folder} was rebuilt from AVSBench-semantic, whose labels "
            "differ: do not put its scores beside published ones.",
            file=sys.stderr,
        )
    decode = decoding.with_fast_pictures(builder.info.features).deserialize_example_np
    seconds = DATASETS[name].seconds[subset]
    source = Source(records, decode, seconds, f"{name}/{subset}/{split}", cure)
    if len(source):  # damage shows now rather than after an hour of training
        source[0], source[len(source) - 1]
    return source
