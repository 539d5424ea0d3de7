"""Writes a miniature AVSBench in exactly the released layouts, with the oddities of the real one.

    write_s4(folder)         8 clips of 2 categories; names that begin with "-" and "_"
    write_ms3(folder)        4 clips; one all-black mask, one id with a suffix
    write_semantic(folder)   v1s, v1m, v2: landscape and portrait, 5 and 10 frames, one short wav

Everything is drawn from the clip's name, so that writing twice gives the same bytes.
"""

import csv
import dataclasses
import pathlib
import zlib

import cv2
import numpy as np
import scipy.io.wavfile

from avs_jax.data.avsbench import classes

S4_CLIPS = {  # split -> (name, category)
    "train": [
        ("-_wznbUu3DY", "dog_barking"),
        ("_0d9u2Cym", "playing_tabla"),
        ("0012", "dog_barking"),
        ("1e5", "playing_tabla"),
    ],
    "val": [("Ab-c_d", "dog_barking"), ("-0", "playing_tabla")],
    "test": [("zz_Z", "dog_barking"), ("__q", "playing_tabla")],
}
MS3_CLIPS = {"train": ["xv7eM6-UmkY_36", "-jlhuZfcw61w"], "val": ["Kot-gIKy4Qk_0"], "test": ["_Q2"]}
MS3_BLACK = ("Kot-gIKy4Qk_0", 2)  # frame, counted from 1, without a sounding object


@dataclasses.dataclass(frozen=True)
class Row:
    """A clip of the semantic layout: its row and how its pictures and sound look."""

    uid: str
    category: str
    split: str
    subset: str
    size: tuple[int, int] = (96, 54)  # width, height
    seconds: float | None = None  # of its wav; None: as released

    @property
    def num_frames(self) -> int:
        return 10 if self.subset == "v2" else 5

    @property
    def num_labelled(self) -> int:
        return 1 if (self.subset, self.split) == ("v1s", "train") else self.num_frames


SEMANTIC_CLIPS = (
    Row("-_9NSq4U3nw_0_5000", "guitar", "train", "v1s"),
    Row("__GO_4000_9000", "h orse", "train", "v1s", (54, 96)),
    Row("Ab_1000_6000", "woman", "val", "v1s"),
    Row("Cd_0_5000", "man_off-the-screen", "test", "v1s", (54, 96), 2.0),
    Row("_19NVGk6Zt8_0", "guitar_woman", "train", "v1m"),
    Row("-Kot_3", "dog_man", "val", "v1m"),
    Row("u4v75o5WxYw_7", "frying-food_man", "test", "v1m", (54, 96)),
    Row("_-apT0_16000_26000", "girl_guitar", "train", "v2"),
    Row("0je_0_10000", "background", "train", "v2", (54, 96)),
    Row("0V9_0_10000", "bird_cat_dog", "val", "v2"),
    Row("1-j_0_10000", "missile-rocket", "test", "v2", (54, 96)),
)


def draw_frame(name: str, index: int, width: int, height: int) -> np.ndarray:
    """A gradient with a bright box where `draw_mask` has its object, u8[h w 3] RGB."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    corner = rng.integers(0, 128, 3)
    ramp = np.linspace(0, 100, width)[None, :, None] + np.linspace(0, 27, height)[:, None, None]
    frame = (corner + ramp).astype(np.uint8)
    frame[draw_mask(name, index, width, height) > 0] = (255, 240, 20)
    return frame


def draw_mask(name: str, index: int, width: int, height: int) -> np.ndarray:
    """A box that moves with the frame's index, u8[h w] of 0 and 1."""
    top = zlib.crc32(name.encode()) % (height // 4)
    left = (index + 1) * width // 20
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + height // 3, left : left + width // 3] = 1
    return mask


def draw_label(row: Row, index: int) -> np.ndarray:
    """Class ids of a clip of the semantic layout: its sources side by side in the box, u8[h w]."""
    width, height = row.size
    mask = draw_mask(row.uid, index, width, height)
    names = classes.sources(row.category)
    label = np.zeros_like(mask)
    columns = np.flatnonzero(mask.any(axis=0))
    for name, part in zip(names, np.array_split(columns, max(len(names), 1)), strict=False):
        label[:, part] = mask[:, part] * classes.class_id(name)
    return label


def draw_sound(name: str, seconds: float, rate: int) -> np.ndarray:
    """A tone in stereo, its channels different, int16[s 2]."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + zlib.crc32(name.encode()) % 400
    tone = np.sin(2 * np.pi * pitch * time)
    return (np.stack([tone, 0.5 * tone], axis=1) * 9000).astype(np.int16)


def write_picture(path: pathlib.Path, pixels: np.ndarray) -> None:
    """PNG or JPEG by the path's suffix; RGB or grey by the array's shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    path.write_bytes(cv2.imencode(path.suffix, bgr)[1].tobytes())


def write_sound(path: pathlib.Path, rate: int, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.wavfile.write(path, rate, samples)


def write_table(path: pathlib.Path, columns: list[str], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def write_s4(folder: pathlib.Path, size: int = 224, clips: dict | None = None) -> pathlib.Path:
    """`folder`/s4_meta_data.csv and `folder`/s4_data/...; returns `folder`."""
    data = folder / "s4_data"
    rows = []
    for split, named in (clips or S4_CLIPS).items():
        for name, category in named:
            rows.append((name, 0, category, split))
            for index in range(5):
                file = pathlib.Path(split, category, name, f"{name}_{index + 1}.png")
                frame = draw_frame(name, index, size, size)
                write_picture(data / "visual_frames" / file, frame)
                if split != "train" or index == 0:
                    mask = 255 * draw_mask(name, index, size, size)
                    write_picture(data / "gt_masks" / file, mask)
            wav = data / "audio_wav" / split / category / f"{name}.wav"
            write_sound(wav, 16_000, draw_sound(name, 5.02, 16_000))
    rows.sort(key=lambda row: row[2])  # the release's is not sorted by split
    write_table(folder / "s4_meta_data.csv", ["name", "start", "category", "split"], rows)
    return folder


def write_ms3(folder: pathlib.Path, size: int = 224) -> pathlib.Path:
    """`folder`/ms3_meta_data.csv and `folder`/ms3_data/...; returns `folder`."""
    data = folder / "ms3_data"
    rows = []
    for split, names in MS3_CLIPS.items():
        for name in names:
            rows.append((name, split))
            for index in range(5):
                # Frames are not filed by split, and have ".mp4" in their names.
                frame = data / "visual_frames" / name / f"{name}.mp4_{index + 1}.png"
                write_picture(frame, draw_frame(name, index, size, size))
                mask = 255 * draw_mask(name, index, size, size)
                if (name, index + 1) == MS3_BLACK:
                    mask[:] = 0
                write_picture(data / "gt_masks" / split / name / f"{name}_{index + 1}.png", mask)
            wav = data / "audio_wav" / split / f"{name}.wav"
            write_sound(wav, 16_000, draw_sound(name, 5.02, 16_000))
    write_table(folder / "ms3_meta_data.csv", ["video_id", "split"], rows)
    return folder


def write_semantic(folder: pathlib.Path, rows: tuple[Row, ...] = SEMANTIC_CLIPS) -> pathlib.Path:
    """`folder`/metadata.csv and `folder`/{v1s,v1m,v2}/...; returns `folder`."""
    for row in rows:
        clip = folder / row.subset / row.uid
        for index in range(row.num_frames):
            frame = draw_frame(row.uid, index, *row.size)
            write_picture(clip / "frames" / f"{index}.jpg", frame)
            if index < row.num_labelled:
                label = draw_label(row, index)
                write_picture(clip / "labels_semantic" / f"{index}.png", label)
                colours = classes.encode_palette(label)
                write_picture(clip / "labels_rgb" / f"{index}.png", colours)
        rate = 48_000 if row.subset == "v2" else 16_000
        seconds = row.seconds or (10.0 if row.subset == "v2" else 5.02)
        write_sound(clip / "audio.wav", rate, draw_sound(row.uid, seconds, rate))
    write_table(
        folder / "metadata.csv",
        ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"],
        [(row.uid[:11], row.uid, 0, 0, row.category, row.split, row.subset) for row in rows],
    )
    return folder


def write_all(folder: pathlib.Path, size: int = 224) -> pathlib.Path:
    """The three under one folder, named as the release names them; returns `folder`."""
    write_s4(folder / "AVSBench_object" / "Single-source", size)
    write_ms3(folder / "AVSBench_object" / "Multi-sources", size)
    write_semantic(folder / "AVSBench_semantic")
    return folder
