"""Pictures of a trained model: strips of clips, what goes on inside, and the learning curve.

    python -m avs_jax.pictures --checkpoint WORKDIR --split test --count 4

Writes WORKDIR/strips/*.png, a clip each (frames, truth, prediction and the sound that the model
hears, time to the right), WORKDIR/strips.png with all of them, and WORKDIR/learning_curve.png.
Beside the strips, of the same clips:

    pcmanet    WORKDIR/confidence: what each stage has made up its mind about, and what it asks on
    catr       WORKDIR/listening: where the query that answers for a frame looks, and the masks when
               the model hears the clip's own sound, another clip's, or nothing
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from avs_jax import devices, errors
from avs_jax.backbones import get_normalization
from avs_jax.data import SAMPLE_RATE, open_split, transforms
from avs_jax.devices import quiet_libraries
from avs_jax.media import drawing
from avs_jax.models import catr
from avs_jax.models.forward import model_inputs
from avs_jax.training import curves
from avs_jax.types import PyTree
from avs_jax.weights import open_model, zoo
from avs_jax.weights.trained import Loaded


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
    network = Network(loaded)
    fit = transforms.Resize(data.size)
    kinds = {"strips": draw_strip} | INSIDE.get(loaded.config.model.name, {})
    pictures = {kind: [] for kind in kinds}
    # Spread over the split: neighbours in a data set are often alike.
    for i in np.linspace(0, len(source), args.count, endpoint=False).astype(int):
        clip = fit.map(source[int(i)])
        other = fit.map(source[(int(i) + len(source) // 2) % len(source)])
        sample = Sample(clip, other, network(clip))
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


class Network:
    """A checkpoint's model, compiled once: a clip of the data set -> all it puts out for it."""

    def __init__(self, loaded: Loaded):
        data = loaded.config.data
        normalization = get_normalization(loaded.config.model.backbone)

        def inputs(batch):
            exists = batch["frame_mask"]
            pair = model_inputs(
                batch["frames"], batch["waveform"], normalization, data.size, data.alignment, exists
            )
            return *pair, exists

        self.names = loaded.class_names
        # Of one class: the logit from which on its pixels sound.
        self.least = loaded.temperature * np.log(loaded.threshold / (1 - loaded.threshold))
        self.model = loaded.model
        self._variables = loaded.variables
        self._matmul_precision = loaded.matmul_precision
        self._outputs = jax.jit(lambda v, batch: loaded.model.apply(v, *inputs(batch)))
        self._attention = jax.jit(
            lambda v, batch: catr.query_attention(loaded.model, v, *inputs(batch))
        )

    def __call__(self, clip: dict, waveform: np.ndarray | None = None) -> PyTree:
        """The model's outputs for one clip; `waveform`: what it hears instead of the clip's own."""
        return self._run(self._outputs, clip, waveform)

    def attention(self, clip: dict) -> PyTree:
        """What `catr.query_attention` gives for one clip."""
        return self._run(self._attention, clip)

    def _run(self, function: Callable, clip: dict, waveform: np.ndarray | None = None) -> PyTree:
        batch = {name: clip[name][None] for name in ("frames", "waveform", "frame_mask")}
        if waveform is not None:
            batch["waveform"] = waveform[None]
        with jax.default_matmul_precision(self._matmul_precision):
            outputs = jax.device_get(function(self._variables, batch))
        exists = clip["frame_mask"]
        if function is self._outputs and not np.isfinite(outputs["logits"][0, exists]).all():
            raise errors.BadValueError(
                f"logits of clip {clip['id']} are NaN or infinite; there is nothing to draw. Take "
                "an earlier checkpoint (--which), or compute in float32 (model.dtype)."
            )
        return outputs


class Sample(NamedTuple):
    """A clip in the pictures, another one whose sound it may be given, and its outputs."""

    clip: dict
    other: dict
    outputs: PyTree

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and truth of the seconds that exist."""
        seconds = self.seconds
        return self.clip["frames"][:seconds], self.clip["label"][:seconds]

    @property
    def seconds(self) -> int:
        return int(self.clip["frame_mask"].sum())


def predict_ids(logits: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Logits f32[.. k] -> class ids i32[..]; where there is one class 1 above the logit `least`."""
    ids = logits[..., 0] > least if logits.shape[-1] == 1 else logits.argmax(-1)
    return ids.astype(np.int32)


def draw_strip(network: Network, sample: Sample) -> np.ndarray:
    """What every model is drawn with: frames, truth, prediction, sound."""
    return drawing.strip(
        *sample.known(),
        predict_ids(sample.outputs["logits"][0], network.least)[: sample.seconds],
        sample.clip["waveform"][: SAMPLE_RATE * sample.seconds],
        class_names=network.names,
        binary=network.names is None,
    )


def draw_confidence(network: Network, sample: Sample) -> np.ndarray:
    """PCMANet: the answers of its stages and the masks that they hand on."""
    stages = {k: f"stage {k}" for k in (4, 3, 2, 1)}  # coarse to fine
    logits = dict(zip((1, 2, 3, 4), sample.outputs["stage_logits"], strict=True))
    masks = dict(zip((4, 3, 2), sample.outputs["masks"], strict=True))
    seconds = sample.seconds
    return drawing.confidence_strip(
        *sample.known(),
        {name: predict_ids(logits[k][0])[:seconds] for k, name in stages.items()},
        {stages[k]: mask[0, :seconds] for k, mask in masks.items()},
        sample.clip["waveform"][: SAMPLE_RATE * seconds],
        class_names=network.names,
        binary=network.names is None,
    )


def draw_listening(network: Network, sample: Sample) -> np.ndarray:
    """CATR: its chosen queries' attention, and what it marks when it hears something else."""
    seconds = sample.seconds
    weights, on_sound = (x[0, :seconds] for x in network.attention(sample.clip))
    queries = sample.outputs["query"][0, :seconds]
    notes = [f"query {query}" for query in queries]
    if network.model.mode == "reference":  # in `paper` the memory of the decoder has no sound
        notes = [f"{a}, {b:.0%} on sound" for a, b in zip(notes, on_sound, strict=True)]
    own, other = sample.clip["waveform"], sample.other["waveform"]
    masks = {}
    for name, sound in {"own sound": own, "another clip's": other, "no sound": 0 * own}.items():
        logits = network(sample.clip, sound)["logits"]
        masks[name] = (predict_ids(logits[0])[:seconds], sound[: SAMPLE_RATE * seconds])
    return drawing.listening_strip(
        *sample.known(),
        weights,
        notes,
        masks,
        class_names=network.names,
        binary=network.names is None,
    )


# model name -> {folder of the pictures: (network, clip) -> picture}
INSIDE: dict[str, dict[str, Callable[[Network, Sample], np.ndarray]]] = {
    "pcmanet": {"confidence": draw_confidence},
    "catr": {"listening": draw_listening},
}


if __name__ == "__main__":
    errors.run_program(main)
