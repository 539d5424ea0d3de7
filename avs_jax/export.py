"""Write a model as one file that runs without avs_jax: from pictures and sound to probabilities.

    avs-jax export --output FILE.npz              lite, the model that comes with the package
    avs-jax export WORKDIR --output FILE.npz
    avs-jax export CONVERTED --config configs/pcmanet.py:subset=s4 --output FILE.npz
    avs-jax export --output FILE.onnx             for ONNX Runtime, OpenVINO and others
    avs-jax export --output FILE.onnx --int8      smaller, and faster there

FILE.npz holds a `jax.export` program (StableHLO for CPU, CUDA and TPU) and its weights.
Normalisation, resizing and log-mel are inside. To run it, jax and flatbuffers are enough:

    import jax, numpy as np
    from jax import export

    with np.load("FILE.npz") as file:
        program = export.deserialize(bytearray(file["program"]))
        weights = {name: file[name] for name in file.files if "/" in name}
    segment = jax.jit(program.call)
    probabilities = segment(weights, frames, waveform)

    frames         u8[b t h w 3]   RGB, one a second; t h w are fixed, b is free (--batch fixes it)
    waveform       f32[b s]        16 kHz, mono, -1 to 1; s = 16000 t
    probabilities  f32[b t h w 1]  of sounding; f32[b t h w k] over classes (0 = background) on AVSS

str(file["manifest"]) is a JSON text: shapes, classes, versions, checksums. A program with a free
batch made by a newer jax may need that jax; --batch makes one that older ones open, too.

FILE.onnx (extra `onnx`) is the same function with its weights in it; its batch is fixed (--batch,
default 1), the manifest is in its metadata:

    import onnxruntime

    session = onnxruntime.InferenceSession("FILE.onnx")
    (probabilities,) = session.run(None, {"frames": frames, "waveform": waveform})
    manifest = session.get_modelmeta().custom_metadata_map["manifest"]

Either is run and compared with the model first; one that gives other numbers is not written. With
--int8 (exporting/int8.py: what is in int8, and what not) it gives other numbers: its masks are
compared with the model's on clips, and are not to be far from them.
"""

import argparse
import functools
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from avs_jax import __version__, devices, errors
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.partial import removed_on_signals, write_whole
from avs_jax.prediction.masks import make_calibrated
from avs_jax.types import Array, Float, UInt8
from avs_jax.weights import open_model, zoo
from avs_jax.weights.converted import flatten, unflatten
from avs_jax.weights.trained import Loaded

PLATFORMS = ("cpu", "cuda", "tpu")
# Of the largest probability, between the program that was written and the model it comes from: both
# are compiled from the same operations, in another order at most.
TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with removed_on_signals():
        devices.quiet_libraries()
        devices.start_jax()
        loaded = open_model(args.model, args.which, args.config)
        data = loaded.config.data
        size, seconds = args.size or data.size, args.seconds or data.seconds
        weights = half(loaded) if args.half else flatten(jax.tree.map(np.asarray, loaded.variables))
        if args.output.endswith(".onnx"):
            known = {name: jnp.asarray(x) for name, x in weights.items()}
            segment = functools.partial(make_segment(loaded), known)
            inputs = input_shapes(args.batch or 1, seconds, size)
            told = write_onnx(loaded, weights, args, segment, inputs)
            runs_by = "ONNX Runtime, OpenVINO and others"
        else:
            program = export_program(loaded, weights, args.batch, seconds, size)
            difference = check(program, loaded, weights, args.batch or 2)
            manifest = describe_program(loaded, program, weights, args, difference)
            write(args.output, program, weights, manifest)
            runs_by = ", ".join(PLATFORMS)
            told = f"it differs from the model by {difference:.0e} at most"
    print(
        f"{args.output}: {loaded.config.model.name} of {args.model}, step {loaded.step}, "
        f"{os.path.getsize(args.output) / 1e6:.1f} MB, for {runs_by}; opened again and run here, "
        f"{told}."
    )
    if args.time:
        print(time_onnx(args.output, segment, inputs, args.time))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="?",
        default=zoo.DEFAULT,
        help=f"{', '.join(zoo.NAMES)} (of the package), WORKDIR of a run, or converted weights "
        f"(default: {zoo.DEFAULT})",
    )
    add("--config", metavar="FILE[:ARGS]", help="the config that converted weights are for")
    add("--which", default="best", help="best, latest or a step (default: best)")
    add("--output", required=True, metavar="FILE", help="the .npz or .onnx file to write")
    add(
        "--batch",
        type=int,
        metavar="B",
        help="clips in a call (default: any number; of an .onnx file 1)",
    )
    add("--size", type=int, metavar="PIXELS", help="side of the frames (default: the data's)")
    add("--seconds", type=int, metavar="T", help="length of a clip (default: the data's)")
    add(
        "--time",
        type=int,
        metavar="ROUNDS",
        help="of an .onnx file: then time it here by ONNX Runtime and OpenVINO beside XLA",
    )
    add("--half", action="store_true", help="keep weights in float16: half the size")
    add(
        "--int8",
        action="store_true",
        help="of an .onnx file: the backbones' convolutions in int8, calibrated on clips",
    )
    add(
        "--data_dir",
        metavar="DIR",
        help="for --int8: where the model's data set is (default: its config's; where there is "
        "none, drawings)",
    )
    args = parser.parse_args(argv)
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raises BadValueError or NotFoundError for what cannot be asked for."""
    for name in ("batch", "size", "seconds", "time"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise errors.BadValueError(f"--{name}={value}: wanted 1 or more.")
    if not args.output.endswith((".npz", ".onnx")):
        raise errors.BadValueError(
            f"--output {args.output}: wanted a name that ends with .npz or .onnx."
        )
    if args.time and not args.output.endswith(".onnx"):
        raise errors.BadValueError("--time is for .onnx files; `avs-jax benchmark` times XLA.")
    if args.int8 and not args.output.endswith(".onnx"):
        raise errors.BadValueError(
            f"--int8 is for .onnx files, not for {args.output}; --half makes an .npz file smaller."
        )
    if args.int8 and args.half:
        raise errors.BadValueError("--int8 and --half: wanted one of the two.")
    if args.data_dir and not args.int8:
        raise errors.BadValueError("--data_dir is where --int8 finds its clips; add --int8.")
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if args.output.endswith(".onnx") and missing:
        raise errors.NotFoundError(
            f"--output {args.output} needs {' and '.join(missing)}, not installed: "
            'pip install "avs_jax[onnx]".'
        )
    folder = os.path.dirname(os.path.abspath(args.output))
    if not os.path.isdir(folder):
        raise errors.NotFoundError(f"--output {args.output}: there is no folder {folder}.")


def half(loaded: Loaded) -> dict[str, np.ndarray]:
    """Flat weights in float16.

    Raises:
      BadValueError: one is beyond float16's range.
    """
    weights = flatten(jax.tree.map(np.asarray, loaded.variables))
    limit = float(np.finfo(np.float16).max)
    for name, value in weights.items():
        largest = float(np.abs(value).max(initial=0.0))
        if largest > limit:
            raise errors.BadValueError(
                f"--half: {name} holds {largest:.3g}, float16 ends at {limit:.0f}; leave out "
                "--half."
            )
    return {name: value.astype(np.float16) for name, value in weights.items()}


def make_segment(loaded: Loaded) -> Callable:
    """`segment(weights, frames, waveform)` -> probabilities, as the module's docstring says."""
    network = make_calibrated(loaded)

    def segment(
        weights: Mapping[str, Array],
        frames: UInt8[Array, "b t h w 3"],
        waveform: Float[Array, "b s"],
    ) -> Float[Array, "b t h w k"]:
        variables = unflatten({name: x.astype(jnp.float32) for name, x in weights.items()})
        frame_mask = jnp.ones(frames.shape[:2], bool)
        batch = {"frames": frames, "waveform": waveform, "frame_mask": frame_mask}
        with jax.default_matmul_precision(loaded.matmul_precision):
            logits = network(variables, batch).astype(jnp.float32)
        return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)

    return segment


def input_shapes(b: Any, seconds: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of `segment`, by name; `b` may be a symbol."""
    return {
        "frames": jax.ShapeDtypeStruct((b, seconds, size, size, 3), jnp.uint8),
        "waveform": jax.ShapeDtypeStruct((b, seconds * SAMPLE_RATE), jnp.float32),
    }


def export_program(
    loaded: Loaded,
    weights: Mapping[str, np.ndarray],
    batch: int | None,
    seconds: int,
    size: int,
) -> jax_export.Exported:
    """The model as a program for every platform; `batch` None: of any number of clips."""
    (b,) = jax_export.symbolic_shape("b") if batch is None else (batch,)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    export = jax_export.export(jax.jit(make_segment(loaded)), platforms=PLATFORMS)
    return export(shapes, *input_shapes(b, seconds, size).values())


def serialize(program: jax_export.Exported) -> bytearray:
    """Its bytes.

    Raises:
      NotFoundError: flatbuffers is not installed.
    """
    try:
        return program.serialize()
    except ImportError as error:
        raise errors.NotFoundError(
            "jax.export needs flatbuffers, which is not installed: "
            'pip install "avs_jax[export]" or pip install flatbuffers.'
        ) from error


def check(
    program: jax_export.Exported,
    loaded: Loaded,
    weights: Mapping[str, np.ndarray],
    clips: int,
) -> float:
    """Opens the program from its bytes, runs it and the model on the same noise.

    Returns the largest difference of a probability.

    Raises:
      BadValueError: it is more than TOLERANCE of the largest one: such a program is not to be used.
    """
    frames, waveform = program.in_avals[-2:]
    rng = np.random.default_rng(0)
    noise = (
        rng.integers(0, 256, (clips, *frames.shape[1:]), dtype=np.uint8),
        rng.normal(0, 0.1, (clips, *waveform.shape[1:])).astype(np.float32),
    )
    reopened = jax_export.deserialize(serialize(program))
    found = np.asarray(jax.jit(reopened.call)(dict(weights), *noise))
    wanted = np.asarray(jax.jit(make_segment(loaded))(dict(weights), *noise))
    difference = float(np.abs(found - wanted).max())
    # `lite` is all but silent at noise: a fixed bound would let anything of it pass.
    allowed = TOLERANCE * float(wanted.max())
    if not difference <= allowed:  # NaN neither
        raise errors.BadValueError(
            f"the exported program differs from the model by {difference:.2g}, allowed are "
            f"{allowed:.2g}: not written. Please report it with the versions of jax and jaxlib."
        )
    return difference


def describe(
    loaded: Loaded,
    weights: Mapping[str, np.ndarray],
    args: argparse.Namespace,
    inputs: Sequence[Any],
    output: Any,
    difference: float,
) -> dict[str, Any]:
    """The manifest, but for what is of one kind of file.

    inputs (frames, waveform) and output: what has a shape.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    frames, waveform = inputs
    return {
        "model": dict(loaded.config.model),
        "from": os.fspath(args.model),
        "step": loaded.step,
        "inputs": {
            "frames": f"u8{list(map(str, frames.shape))}",
            "waveform": f"f32{list(map(str, waveform.shape))}",
        },
        "output": f"f32{list(map(str, output.shape))}",
        "sample_rate": SAMPLE_RATE,
        "classes": loaded.class_names,
        "weights": {"count": sum(x.size for x in weights.values()), "sha256": digest.hexdigest()},
        "largest_difference": difference,
        "versions": {
            "avs_jax": __version__,
            "jax": jax.__version__,
            "python": sys.version.partition(" ")[0],
        },
    }


def describe_program(
    loaded: Loaded,
    program: jax_export.Exported,
    weights: Mapping[str, np.ndarray],
    args: argparse.Namespace,
    difference: float,
) -> dict[str, Any]:
    """The manifest of an .npz file."""
    manifest = describe(
        loaded, weights, args, program.in_avals[-2:], program.out_avals[0], difference
    )
    manifest["versions"]["calling_convention"] = program.calling_convention_version
    return manifest | {
        "platforms": list(program.platforms),
        "program_sha256": hashlib.sha256(serialize(program)).hexdigest(),
    }


def write_onnx(
    loaded: Loaded,
    weights: Mapping[str, np.ndarray],
    args: argparse.Namespace,
    segment: Callable,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> str:
    """Writes an .onnx file; returns how far it is from the model, in words.

    Raises:
      BadValueError: the model cannot be written as ONNX, or gives other numbers there.
      NotFoundError: for --int8, there are no clips in --data_dir.
    """
    from avs_jax.exporting import clips, int8, onnx_file

    model, difference = onnx_file.make(segment, inputs, half=args.half)
    output = jax.eval_shape(segment, *inputs.values())
    manifest = describe(loaded, weights, args, list(inputs.values()), output, difference)
    manifest["versions"] |= onnx_file.versions()
    told = f"it differs from the model by {difference:.0e} at most"
    if args.int8:
        examples = clips.take_clips(loaded.config.data, inputs, args.data_dir)
        model, agreement = int8.quantise(model, examples, loaded.threshold)
        manifest["int8"] = agreement._asdict()
        told = (
            f"on {agreement.clips} clips its masks have an IoU of {agreement.iou:.3f} with the "
            f"model's and its probabilities differ by {agreement.difference:.4f} in the mean"
        )
    write_whole(args.output, onnx_file.to_bytes(model, manifest))
    return told


def time_onnx(
    path: str, segment: Callable, inputs: Mapping[str, jax.ShapeDtypeStruct], rounds: int
) -> str:
    """A table of what the file takes by each runtime."""
    from avs_jax.exporting import onnx_file, runtimes

    _, example = next(onnx_file.examples(inputs))
    data = pathlib.Path(path).read_bytes()
    return runtimes.to_table(runtimes.time_runtimes(data, segment, example, rounds))


def write(
    path: str | os.PathLike,
    program: jax_export.Exported,
    weights: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
) -> None:
    """Writes the file: whole or not at all."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        program=np.frombuffer(serialize(program), np.uint8),
        manifest=np.array(json.dumps(manifest)),
        **weights,
    )
    write_whole(path, buffer.getvalue())


if __name__ == "__main__":
    errors.run_program(main)
