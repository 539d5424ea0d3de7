"""A function of jax as the bytes of an ONNX file that is known to give the same numbers."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from onnx import helper

from avs_jax import errors
from avs_jax.exporting import jaxpr_to_onnx
from avs_jax.exporting.graph import OPSET
from avs_jax.exporting.runtimes import start_onnxruntime
from avs_jax.types import Float, UInt8

OUTPUT = "probabilities"
# Of the spread of the model's own outputs. Summing in another order moves them by up to 1e-5 of it;
# an operator that is wrong at the edge of a map alone, by some per cent.
TOLERANCE = 1e-4
# Probabilities near 1 are 6e-8 apart: of a model that says the same everywhere not less is asked.
RESOLUTION = 1e-6
MAX_BYTES = 2**31 - 1  # what protobuf holds


def make(
    segment: Callable, inputs: Mapping[str, jax.ShapeDtypeStruct], half: bool = False
) -> tuple[onnx.ModelProto, float]:
    """The model, and the largest difference of an output between ONNX Runtime and jax.

    Args:
      segment: of frames u8[b t h w 3] and waveform f32[b s], by `inputs`.
      half: keep weights in float16 that it holds exactly.

    Raises:
      BadValueError: the function cannot be written, is too large, or its numbers differ.
    """
    model = jaxpr_to_onnx.write(lambda *x: (segment(*x),), inputs, [OUTPUT], half)
    if model.ByteSize() > MAX_BYTES:
        raise errors.BadValueError(
            f"{model.ByteSize() / 1e9:.1f} GB: ONNX files end at 2.1 GB; export to .npz instead."
        )
    return model, compare(model, segment, inputs)


def compare(
    model: onnx.ModelProto, segment: Callable, inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> float:
    """Runs both on noise and on something like a picture with a sound.

    Raises:
      BadValueError: ONNX Runtime cannot run the model, or its numbers differ.
    """
    run, compiled = start_onnxruntime(model.SerializeToString()), jax.jit(segment)
    largest = 0.0
    for kind, example in examples(inputs):
        found, wanted = run(**example), np.asarray(compiled(*example.values()))
        difference = float(np.abs(found - wanted).max())
        allowed = TOLERANCE * float(wanted.std()) + RESOLUTION
        if not difference <= allowed:  # NaN neither
            raise errors.BadValueError(
                f"as ONNX the model gives other numbers for {kind}: they differ by "
                f"{difference:.2g}, allowed are {allowed:.2g}. Not written; export to .npz "
                "instead, and please report it."
            )
        largest = max(largest, difference)
    return largest


def examples(
    inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> Iterator[tuple[str, dict[str, UInt8[np.ndarray, "b t h w 3"] | Float[np.ndarray, "b s"]]]]:
    """(what it is, inputs) of two batches."""
    frames, waveform = inputs["frames"].shape, inputs["waveform"].shape
    rng = np.random.default_rng(0)
    yield (
        "noise",
        {
            "frames": rng.integers(0, 256, frames, np.uint8),
            "waveform": rng.normal(0, 0.1, waveform).astype(np.float32),
        },
    )
    # A bright disc that moves over a gradient; a tone that rises and falls silent.
    _, t, height, width, _ = frames
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    pictures = np.empty(frames, np.uint8)
    for second in range(t):
        far = np.hypot(y - 0.5, x - (second + 1) / (t + 1))
        picture = np.stack([200 * x, 150 * y, 255 * (far < 0.2)], axis=-1)
        pictures[:, second] = picture.astype(np.uint8)
    seconds = np.arange(waveform[1]) / waveform[1]
    tone = np.sin(2 * np.pi * 300 * t * seconds * (1 + seconds)) * np.clip(1 - 1.5 * seconds, 0, 1)
    sound = np.broadcast_to(0.5 * tone, waveform).astype(np.float32)
    yield "a picture with a tone", {"frames": pictures, "waveform": sound}


def versions() -> dict[str, Any]:
    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "opset": OPSET}


def to_bytes(model: onnx.ModelProto, manifest: Mapping[str, Any]) -> bytes:
    """The file, with a manifest among its metadata."""
    helper.set_model_props(model, {"manifest": json.dumps(manifest)})
    return model.SerializeToString()
