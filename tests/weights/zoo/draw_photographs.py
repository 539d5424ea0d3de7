"""Draws the README's first picture: two photographs beside each other, and what `lite` marks.

    pip download --no-deps scikit-image==0.26.0
    bash launch/fetch_media.sh data/media
    python -m tests.weights.zoo.draw_photographs scikit_image-*.whl data/media launch/lite.jpg

The photographs (a cat by Stefan van der Walt, a motorcycle by Daniel Scharstein, both CC0) come
with scikit-image and were in no training set of ours; the sounds are those that `stamps` reads.
"""

import argparse
import pathlib
import zipfile

import cv2
import matplotlib.pyplot as plt
import numpy as np

import avs_jax
from avs_jax.media import drawing, sound

SOUNDS = {
    "a cat": "F/cat.wav",
    "an engine that starts": "noises/LRStartAndStopCarEngine1LACut.wav",
    "silence": None,
}
SIZE = 288  # pixels of each photograph
SECONDS, RATE, FPS = 4, 16_000, 4


def read_photograph(wheel: pathlib.Path, name: str) -> np.ndarray:
    """The middle of a photograph, a square of SIZE."""
    with zipfile.ZipFile(wheel) as archive:
        data = np.frombuffer(archive.read(f"skimage/data/{name}"), np.uint8)
    picture = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    square = picture[top : top + side, left : left + side]
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def read_waveform(path: pathlib.Path | None) -> np.ndarray:
    """SECONDS of a sound, repeated if it is shorter, its peak at half of full scale."""
    samples = np.zeros(SECONDS * RATE, np.float32)
    if path is None:
        return samples
    samples = np.resize(sound.read_sound_file(str(path)), SECONDS * RATE)
    return samples / np.abs(samples).max() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=pathlib.Path, help="of scikit-image 0.26.0")
    parser.add_argument("media", type=pathlib.Path, help="folder of launch/fetch_media.sh")
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    names = ("chelsea.png", "motorcycle_left.png")
    both = np.concatenate([read_photograph(args.wheel, name) for name in names], 1)
    frames = np.repeat(both[None], SECONDS * FPS, 0)
    model = avs_jax.load("lite")
    figure, axes = plt.subplots(
        2, len(SOUNDS), figsize=(13.2, 2.9), height_ratios=(5, 1), layout="constrained"
    )
    for (picture, below), (name, file) in zip(axes.T, SOUNDS.items(), strict=True):
        waveform = read_waveform(file and args.media / "sounds" / file)
        mask = model.segment(frames, waveform, RATE)[SECONDS * FPS // 2]
        halves = (half.mean() for half in np.split(mask, 2, 1))
        print(f"{name}: marked {' and '.join(f'{100 * x:.1f} %' for x in halves)} of the two")
        picture.imshow(drawing.overlay(both, mask))
        picture.set_axis_off()
        below.plot(waveform, color="0.3", linewidth=0.5)
        below.set(ylim=(-0.5, 0.5), xlim=(0, len(waveform)), xticks=[], yticks=[])
        below.set_xlabel(f"it hears {name}" if file else name, fontsize=12)
        below.spines[:].set_visible(False)
    figure.savefig(args.output, dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
