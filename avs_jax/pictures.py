"""Pictures of a trained model: strips of clips and the learning curve.

    python -m avs_jax.pictures --checkpoint WORKDIR --split test --count 4

Writes WORKDIR/strips/*.png, a clip each (frames, truth, prediction and the sound that the model
hears, time to the right), WORKDIR/strips.png with all of them, and WORKDIR/learning_curve.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from avs_jax import errors, sharding, visualize
from avs_jax.checkpoint import open_model
from avs_jax.data import open_split, transforms
from avs_jax.logs import quiet_libraries
from avs_jax.predict import find_class_names, make_forward


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="WORKDIR of a training run")
    parser.add_argument("--config", help="FILE[:arguments] that converted weights are for")
    parser.add_argument("--which", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--count", type=int, default=4, help="clips (default: 4)")
    parser.add_argument("--data_dir", help="where the data set is built, if not where it was")
    parser.add_argument("--output", help="folder for the pictures (default: WORKDIR)")
    args = parser.parse_args(argv)

    quiet_libraries()
    sharding.start_jax()
    output = Path(args.output or args.checkpoint)
    loaded = open_model(args.checkpoint, args.which, args.config)
    data = loaded.config.data
    source = open_split(data.name, data.subset, args.split, args.data_dir or data.data_dir)
    if not 1 <= args.count <= len(source):
        raise errors.BadValueError(
            f"--count={args.count}: wanted 1 to {len(source)}, the clips of {args.split}."
        )
    forward = make_forward(loaded)
    names = find_class_names(loaded)
    fit = transforms.Resize(data.size)
    strips = []
    # Spread over the split: neighbours in a data set are often alike.
    for i in np.linspace(0, len(source), args.count, endpoint=False).astype(int):
        clip = fit.map(source[int(i)])
        prediction = predict_ids(forward, clip)
        seconds = int(clip["frame_mask"].sum())
        strip = visualize.strip(
            clip["frames"][:seconds],
            clip["label"][:seconds],
            prediction[:seconds],
            clip["waveform"][: 16_000 * seconds],
            class_names=names,
            binary=names is None,
        )
        strips.append(strip)
        visualize.write_png(output / "strips" / f"{clip['id'].replace('/', '_')}.png", strip)
    visualize.write_png(output / "strips.png", visualize.contact_sheet(strips))
    print(f"strips    {output / 'strips'} ({len(strips)} clips), together {output / 'strips.png'}")

    log = Path(args.checkpoint) / "metrics.jsonl"
    if log.exists():
        visualize.learning_curve(log, output / "learning_curve.png")
        print(f"curve     {output / 'learning_curve.png'}")


def predict_ids(forward, clip: dict) -> np.ndarray:
    """Class ids i32[t h w] that the model gives to a clip; 0 or 1 where it has one class."""
    batch = (clip[name][None] for name in ("frames", "waveform", "frame_mask"))
    logits = np.asarray(jax.device_get(forward(*batch)))[0]
    ids = logits[..., 0] > 0 if logits.shape[-1] == 1 else logits.argmax(-1)
    return ids.astype(np.int32)


if __name__ == "__main__":
    errors.run_program(main)
