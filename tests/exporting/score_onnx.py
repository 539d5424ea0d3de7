"""Scores ONNX files of `lite` on clips of stamps' test: what int8 costs.

    python -m tests.exporting.score_onnx lite.onnx lite_int8.onnx --data_dir data/media --every 2

Mean IoU over frames at the labels' size, for masks above the threshold. Not a test: minutes.
"""

import argparse
import pathlib

import cv2
import numpy as np

from avs_jax.data import open_split, transforms
from avs_jax.exporting import runtimes
from avs_jax.scoring.metrics import mask_iou


def score(run, clip: dict, side: int, threshold: float) -> float:
    frames = transforms.resize_frames(clip["frames"], side, side)
    probabilities = run(frames=frames[None], waveform=clip["waveform"][None])
    size = clip["label"].shape[:0:-1]
    maps = np.stack([cv2.resize(x, size) for x in probabilities[0, ..., 0]])
    return float(mask_iou(maps - np.float32(threshold), clip["label"] > 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.onnx")
    parser.add_argument("--data_dir", default="data/media")
    parser.add_argument("--every", type=int, default=1, help="of the split's clips, every n-th")
    parser.add_argument("--size", type=int, default=288, help="side of the files' frames")
    parser.add_argument("--threshold", type=float, default=0.45)
    args = parser.parse_args()
    clips = open_split("stamps", "ms3", "test", args.data_dir)
    chosen = range(0, len(clips), args.every)
    for path in args.files:
        run = runtimes.start_onnxruntime(pathlib.Path(path).read_bytes())
        values = [score(run, clips[i], args.size, args.threshold) for i in chosen]
        print(f"{path}: mIoU {np.mean(values):.4f} of {len(values)} clips", flush=True)


if __name__ == "__main__":
    main()
