"""Times XLA, ONNX Runtime and OpenVINO on whole models, with random weights but for `lite`.

    python -m tests.exporting.time_runtimes lite pcmanet,resnet50 avesformer,resnet50 --rounds 10
    python -m tests.exporting.time_runtimes lite --rounds 10 --int8 --data_dir data/media

One clip of five frames of 224. Not a test: minutes, and its figures are of the machine.
"""

import argparse

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from avs_jax import export
from avs_jax.exporting import clips, int8, onnx_file, runtimes
from avs_jax.models import get_model
from avs_jax.models.forward import init_shapes
from avs_jax.weights import open_model, zoo
from avs_jax.weights.trained import Loaded


def load(name: str, size: int, seconds: int) -> Loaded:
    """A model of the package, or MODEL,BACKBONE with numbers that keep activations finite."""
    if zoo.is_zoo(name):
        return open_model(name, "best", None)
    model_name, backbone = name.split(",")
    fields = {"name": model_name, "backbone": backbone, "audio_backbone": "vggish"}
    fields["num_classes"] = 1
    model = get_model(**fields)
    rng = np.random.default_rng(0)

    def fill(x):
        if len(x.shape) < 2:
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(np.float32)

    variables = jax.tree.map(fill, dict(init_shapes(model, seconds, size)))
    data = {"name": "stamps", "size": size, "seconds": seconds, "alignment": "paper"}
    return Loaded(
        ml_collections.FrozenConfigDict({"model": fields, "data": data}), model, variables, 0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL[,BACKBONE]")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--int8", action="store_true", help="in int8, too")
    parser.add_argument("--data_dir", metavar="DIR", help="where the clips for --int8 are")
    args = parser.parse_args()
    for name in args.models:
        loaded = load(name, args.size, args.seconds)
        weights = export.flatten(jax.tree.map(jnp.asarray, loaded.variables))
        network = export.make_segment(loaded)

        def segment(frames, waveform, network=network, weights=weights):
            return network(weights, frames, waveform)

        inputs = export.input_shapes(1, args.seconds, args.size)
        model, difference = onnx_file.make(segment, inputs)
        _, example = next(onnx_file.examples(inputs))
        data = model.SerializeToString()
        print(f"{name}: {len(data) / 1e6:.1f} MB, {len(model.graph.node)} nodes, {difference:.1e}")
        others = {}
        if args.int8:
            calibration = clips.take_clips(loaded.config.data, inputs, args.data_dir)
            small, agreement = int8.quantise(model, calibration, loaded.threshold)
            others["int8"] = small.SerializeToString()
            print(f"int8: {len(others['int8']) / 1e6:.1f} MB, {agreement}")
        costs = runtimes.time_runtimes(data, segment, example, args.rounds, others)
        print(runtimes.to_table(costs), flush=True)


if __name__ == "__main__":
    main()
