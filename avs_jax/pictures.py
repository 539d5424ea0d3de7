"""Pictures of a trained model: strips of clips, what goes on inside, and the learning curve.

    python -m avs_jax.pictures --checkpoint WORKDIR --split test --count 4

Writes WORKDIR/strips/*.png, a clip each (frames, truth, prediction and the sound that the model
hears, time to the right), WORKDIR/strips.png with all of them, and WORKDIR/learning_curve.png.
Beside the strips, of the same clips:

    avesformer WORKDIR/prompts: how much each cell looks at the sound's token and its prompts
    pcmanet    WORKDIR/confidence: what each stage has made up its mind about, and what it asks on
    catr       WORKDIR/listening: where the query that answers for a frame looks, and the masks when
               the model hears the clip's own sound, another clip's, or nothing
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avs_jax import devices, errors
from avs_jax.data import open_split, transforms
from avs_jax.devices import quiet_libraries
from avs_jax.media import drawing
from avs_jax.reporting import curves, inside
from avs_jax.weights import open_model, zoo


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help=f"WORKDIR of a training run, or {', '.join(zoo.NAMES)} (of the package)",
    )
    parser.add_argument("--config", help="FILE[:arguments] that converted weights are for")
    parser.add_argument("--which", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--count", type=int, default=4, help="clips (default: 4)")
    parser.add_argument("--data_dir", help="where the data set is built, if not where it was")
    parser.add_argument("--output", help="folder for the pictures (default: WORKDIR)")
    args = parser.parse_args(argv)

    quiet_libraries()
    devices.start_jax()
    output = Path(args.output or zoo.own_folder(args.checkpoint))
    loaded = open_model(args.checkpoint, args.which, args.config)
    data = loaded.config.data
    source = open_split(data.name, data.subset, args.split, args.data_dir or data.data_dir)
    if not 1 <= args.count <= len(source):
        raise errors.BadValueError(
            f"--count={args.count}: wanted 1 to {len(source)}, the clips of {args.split}."
        )
    network = inside.Network(loaded)
    fit = transforms.Resize(data.size)
    kinds = {"strips": inside.draw_strip} | inside.kinds_of(loaded)
    pictures = {kind: [] for kind in kinds}
    # Spread over the split: neighbours in a data set are often alike.
    for i in np.linspace(0, len(source), args.count, endpoint=False).astype(int):
        clip = fit.map(source[int(i)])
        other = fit.map(source[(int(i) + len(source) // 2) % len(source)])
        sample = inside.Sample(clip, other, network)
        for kind, draw in kinds.items():
            pictures[kind].append(draw(network, sample))
            path = output / kind / f"{clip['id'].replace('/', '_')}.png"
            drawing.write_png(path, pictures[kind][-1])
    for kind, drawn in pictures.items():
        together = output / f"{kind}.png"
        drawing.write_png(together, drawing.contact_sheet(drawn))
        print(f"{kind:<10} {output / kind} ({len(drawn)} clips), together {together}")

    log = Path(zoo.own_folder(args.checkpoint)) / "metrics.jsonl"
    if log.exists():
        curves.learning_curve(log, output / "learning_curve.png")
        print(f"{'curve':<10} {output / 'learning_curve.png'}")


if __name__ == "__main__":
    errors.run_program(main)
