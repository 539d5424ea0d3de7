r"""Clips per second from disk to batch on one core, and where the time goes.

    python -m avs_jax.data.benchmark
    python -m avs_jax.data.benchmark --data_dir DIR --subset avss --size 224 --augment

With --data_dir: clips of a built data set. Without: made-up clips in the layout of AVSBench's S4,
5 frames of 224 x 224 that compress like photographs, once with the PNG bytes as released and once
built with --repack.

Everything runs in one thread on one core, as training does with data.num_threads=0. Each figure is
the median over --runs: of the core's own time, so that other programs on the machine do not count
(of the clock's, in the last column). Stages: read (a record from ArrayRecord), decode (PNG or JPEG
to pixels, int16 to float), transform (resizing, augmentation). `train` and `eval` are the whole
way to finished batches.
"""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
import scipy.io.wavfile
from tqdm import tqdm

from avs_jax import errors
from avs_jax.data import DATASETS, SPLITS, Source, open_split, pipeline, transforms
from avs_jax.data.avsbench import build
from avs_jax.types import UInt8

_BATCH = 8  # clips
_AUGMENT = {  # AVESFormer's, the heaviest of the recipes
    "scale": (0.5, 2.0),
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
}


def draw_picture(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Noise of every scale and a little grain: a PNG of it is as large as a photograph's."""
    picture = np.full((size, size, 3), 110.0)
    cells = 4
    while cells < size:
        noise = rng.normal(size=(cells, cells, 3)) + rng.normal(size=(cells, cells, 1))
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        picture += 60 / np.sqrt(cells) * noise
        cells *= 2
    grain = rng.normal(scale=2.0, size=(size, size, 3))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def write_release(folder: pathlib.Path, clips: int, size: int = 224) -> None:
    """A made-up S4 as it is released, all of it in the training split."""
    rng = np.random.default_rng(0)
    data = folder / "s4_data"
    rows = [("name", "start", "category", "split")]
    pictures = [draw_picture(rng, size) for _ in range(8)]
    for i in tqdm(range(clips), desc="making up clips", unit="clip", leave=False):
        name, category = f"clip{i:05d}", "dog_barking"
        rows.append((name, "0", category, "train"))
        files = pathlib.Path("train", category, name)
        for kind in ("visual_frames", "gt_masks"):
            (data / kind / files).mkdir(parents=True)
        for second in range(5):
            frame = np.roll(pictures[i % 8], (7 * i, 3 * second), axis=(0, 1))
            cv2.imwrite(str(data / "visual_frames" / files / f"{name}_{second + 1}.png"), frame)
        mask = np.zeros((size, size), np.uint8)
        cv2.circle(mask, (size // 2, size // 2), size // 4 + i % 8, 255, -1)
        cv2.imwrite(str(data / "gt_masks" / files / f"{name}_1.png"), mask)
        wav = data / "audio_wav" / "train" / category / f"{name}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        sound = rng.normal(scale=2000, size=(80_320, 2)).astype(np.int16)  # 5.02 s
        scipy.io.wavfile.write(wav, 16_000, sound)
    with open(folder / "s4_meta_data.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and OpenCV, on one core; only OpenCV where the system cannot."""
    threads = cv2.getNumThreads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    cv2.setNumThreads(1)
    try:
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        cv2.setNumThreads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


class _Repeated:
    """As many clips as S4 trains on, those of a small source over and over.

    Drawing an order costs the more, the fewer clips there are: 0.2 ms a clip for a hundred.
    """

    def __init__(self, source: Source, length: int = 3452):
        self._source = source
        self._length = max(length, len(source))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index) -> dict:
        return self._source[index % len(self._source)]


def time_stages(source: Source, clips: int, size: int, augment: dict, runs: int) -> dict[str, dict]:
    """{stage: {"ms": core's time for a clip, "clips_per_second", "by_the_clock"}}, medians."""
    steps = transforms.train_transforms(size, flip=0.5, **augment)
    many, count = _Repeated(source), math.ceil(clips / _BATCH)
    train = pipeline.train_batches(many, batch_size=_BATCH, seed=0, transforms=steps, num_threads=0)
    test = pipeline.eval_batches(
        many, batch_size=_BATCH, transforms=transforms.eval_transforms(size)
    )
    times = {}
    for run in tqdm(range(runs + 1), desc="measuring", unit="run", leave=False):
        took = _time_clips(source, clips, steps)
        for name, batches in (("train", train), ("eval", test)):
            start = _now()
            done = sum(len(made["id"]) for made in itertools.islice(batches, count))
            took[name] = (_now() - start) / done
        for name, pair in took.items():
            if run:  # the first one warms up
                times.setdefault(name, []).append(pair)
    figures = {}
    for name, pairs in times.items():
        core, clock = np.median(pairs, axis=0).tolist()
        figures[name] = {"ms": 1e3 * core, "clips_per_second": 1 / core, "by_the_clock": 1 / clock}
    return figures


def _time_clips(source: Source, clips: int, steps: Sequence) -> dict[str, np.ndarray]:
    """Seconds of the core and of the clock for one clip, by stage."""
    took = np.zeros((3, 2))
    for i in range(clips):
        rng = np.random.default_rng(i)
        moments = [_now()]
        record = source.read(i % len(source))
        moments.append(_now())
        example = source.decode(record)
        moments.append(_now())
        for step in steps:
            is_random = isinstance(step, grain.transforms.RandomMap)
            example = step.random_map(example, rng) if is_random else step.map(example)
        moments.append(_now())
        took += np.diff(moments, axis=0)
    return dict(zip(("read", "decode", "transform"), took / clips, strict=True))


def _now() -> np.ndarray:
    """Seconds of this thread on its core, and of the clock."""
    return np.array([time.thread_time(), time.perf_counter()])


def tabulate(title: str, figures: dict[str, dict]) -> str:
    lines = [f"{title}", f"{'':10}{'ms / clip':>12}{'clips / s':>12}{'by the clock':>14}"]
    for name, row in figures.items():
        lines.append(
            f"{name:10}{row['ms']:12.2f}{row['clips_per_second']:12.0f}{row['by_the_clock']:14.0f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.data.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data_dir", help="where a data set is built (default: clips are made up)")
    add("--name", default="avsbench", help=", ".join(DATASETS))
    add("--subset", default="s4", help="s4, ms3, avss")
    add("--split", default="train", help=", ".join(SPLITS))
    add("--size", type=int, default=224, help="side of the pictures in a batch (default: 224)")
    add("--augment", action="store_true", help="AVESFormer's augmentation rather than flips alone")
    add("--clips", type=int, default=128, help="clips of a run (default: 128)")
    add("--runs", type=int, default=5, help="measured runs (default: 5)")
    args = parser.parse_args(argv)
    for name in ("clips", "runs", "size"):
        if getattr(args, name) < 1:
            raise errors.BadValueError(f"--{name}={getattr(args, name)}: wanted 1 or more.")

    def measure(source):
        augment = _AUGMENT if args.augment else {}
        return time_stages(source, args.clips, args.size, augment, args.runs)

    results = {}
    with contextlib.ExitStack() as stack:
        if args.data_dir is None:
            sources = {}
            temporary = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_release(temporary / "release", args.clips, args.size)
            for title, repack in (("as released", False), ("--repack", True)):
                folder = temporary / title
                build.build("s4", temporary / "release", folder, repack=repack, num_workers=1)
                sources[f"made-up s4, {title}"] = open_split("avsbench", "s4", "train", folder)
        else:
            source = open_split(args.name, args.subset, args.split, args.data_dir)
            sources = {source.name: source}
        stack.enter_context(one_core())
        for title, source in sources.items():
            results[title] = measure(source)
            print(tabulate(f"\n{title}, {args.size} x {args.size}, one core", results[title]))
    print(f"\n{json.dumps(results)}")


if __name__ == "__main__":
    errors.run_program(main)
