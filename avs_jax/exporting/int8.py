"""An ONNX model with the convolutions of its backbones in int8, known to mark the same pixels.

    small, agreement = quantise(model, clips, threshold)

ONNX Runtime's own quantisation: weights in int8 with a scale a channel, activations in uint8 whose
ranges are those of a few clips (static calibration). What is not quantised, and why:

- What is outside of the backbones (of `lite` 6 % of the weights): log-mel, attention, evidence, the
  decoder. Not measured in int8: of products with a bias ONNX Runtime 1.32 fails to quantise some.
- The last convolution of each backbone, and its classifier. Evidence takes roots and logarithms of
  probabilities near 0, for which 256 steps are too few: on 44 clips of stamps' test `lite` loses
  0.009 mIoU with them in int8 and nothing without.

Weights have all of their 8 bits: with 7 (`reduce_range`), of which products on x86 without VNNI
(before 2019) cannot saturate, `lite` loses 0.010 on those clips. It was measured with VNNI alone.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization

from avs_jax import errors
from avs_jax.exporting.runtimes import start_onnxruntime
from avs_jax.types import Float, UInt8

# What runtimes make one int8 operation of.
KINDS = ("Conv", "Relu", "Clip")
BACKBONES = ("backbone", "audio_backbone")  # modules of every model
# Of `Agreement`, what a model must reach to be written. On clips of stamps' test `lite` has 0.88
# and 0.007, and loses 0.005 mIoU; with weights of 7 bits 0.83 and 0.010, and loses 0.010.
LEAST_IOU, MOST_DIFFERENCE = 0.85, 0.02

Clip = dict[str, UInt8[np.ndarray, "b t h w 3"] | Float[np.ndarray, "b s"]]


class Agreement(NamedTuple):
    """Of a quantised model with the one it was made of, on clips that it was not calibrated on."""

    clips: int  # calls: of a model of several clips at once, so many batches
    iou: float  # of the masks of the two, mean over frames; 1 where neither marks anything
    difference: float  # of a probability, mean over pixels
    flipped: float  # share of the pixels that one marks and the other does not


def quantise(
    model: onnx.ModelProto, clips: Sequence[Clip], threshold: float
) -> tuple[onnx.ModelProto, Agreement]:
    """The model in int8, and how far it agrees with the model.

    Args:
      clips: inputs by name; every second one calibrates, the others are what is compared.
      threshold: of the probability of a pixel that is marked.

    Raises:
      BadValueError: there is nothing to quantise, or the two do not agree.
    """
    plain = fold(model)
    names = find_nodes(plain)
    with tempfile.TemporaryDirectory(prefix="avs_jax.int8.") as folder, quiet():
        path = os.path.join(folder, "int8.onnx")
        quantization.quantize_static(
            plain,
            path,
            Reader(clips[::2]),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(KINDS),
            nodes_to_quantize=names,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        small = onnx.load(path)
    agreement = compare(model, small, clips[1::2], threshold)
    check(agreement)
    return small, agreement


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as ONNX Runtime simplifies it: scales and biases inside the convolutions."""
    with tempfile.TemporaryDirectory(prefix="avs_jax.int8.") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        # Basic: in operators of ONNX alone, not in those of this machine.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = os.path.join(folder, "folded.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    # It names every set of operators that it has; other runtimes refuse those they do not know.
    known = [opset for opset in folded.opset_import if opset.domain in ("", "ai.onnx")]
    del folded.opset_import[:]
    folded.opset_import.extend(known)
    folded.producer_name = model.producer_name
    return folded


def find_nodes(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes to quantise, by the rule of the module's docstring.

    Raises:
      BadValueError: there is no convolution among them.
    """
    known = {constant.name for constant in model.graph.initializer}
    nodes: dict[str, list[onnx.NodeProto]] = {name: [] for name in BACKBONES}
    for node in model.graph.node:
        if node.op_type in KINDS and (name := backbone_of(node)):
            nodes[name].append(node)
    found = []
    for inside in nodes.values():
        convolutions = [x for x in inside if x.op_type == "Conv" and x.input[1] in known]
        last = inside.index(convolutions[-1]) if convolutions else 0
        found += [x.name for x in inside[:last] if x.op_type != "Conv" or x.input[1] in known]
    if not any(node.op_type == "Conv" and node.name in found for node in model.graph.node):
        raise errors.BadValueError(
            "--int8: the model has no backbone with two convolutions or more; leave out --int8."
        )
    return found


def backbone_of(node: onnx.NodeProto) -> str | None:
    """Of BACKBONES the one that the node is a part of: nodes are named by their modules."""
    modules = re.split(r"[/.]", node.name)
    return next((name for name in BACKBONES if name in modules), None)


class Reader(quantization.CalibrationDataReader):
    """Clips as ONNX Runtime's calibration asks for them."""

    def __init__(self, clips: Sequence[Clip]):
        self._clips = iter(clips)

    def get_next(self) -> Clip | None:
        return next(self._clips, None)


def compare(
    model: onnx.ModelProto, small: onnx.ModelProto, clips: Sequence[Clip], threshold: float
) -> Agreement:
    """How far the masks and probabilities of two models are alike.

    Of several classes the likeliest is what counts, and `threshold` does not.

    Raises:
      BadValueError: `model` marks nothing on any of the clips: whatever did so would be like it.
    """
    runs = [start_onnxruntime(x.SerializeToString()) for x in (model, small)]
    ious, differences, flipped, marks = [], [], [], False
    for clip in clips:
        wanted, found = (run(**clip) for run in runs)  # b t h w k
        differences.append(np.abs(found - wanted).mean())
        masks = [decide(x, threshold) for x in (wanted, found)]
        marks |= bool(masks[0].any())
        flipped.append((masks[0] != masks[1]).mean())
        for a, b in zip(*(x.reshape(-1, *x.shape[-2:]) for x in masks), strict=True):
            union = ((a > 0) | (b > 0)).sum()
            ious.append(((a > 0) & (a == b)).sum() / union if union else 1.0)
    if not marks:
        raise errors.BadValueError(
            f"--int8: the model marks nothing on the {len(clips)} clips that it is compared on, "
            "which says nothing of it in int8. Not written; give clips like those it is for "
            "(--data_dir)."
        )
    means = (float(np.mean(x)) for x in (ious, differences, flipped))
    return Agreement(len(clips), *means)


def decide(
    probabilities: Float[np.ndarray, "b t h w k"], threshold: float
) -> UInt8[np.ndarray, "b t h w"]:
    """Masks: 1 above the threshold; of several classes the number of the likeliest."""
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] > threshold).astype(np.uint8)
    return probabilities.argmax(-1).astype(np.uint8)


def check(agreement: Agreement) -> None:
    """Raises BadValueError where a quantised model is too far from the one it was made of."""
    far = [
        f"the IoU of their masks is {agreement.iou:.3f} (wanted {LEAST_IOU} or more)"
        if not agreement.iou >= LEAST_IOU
        else "",
        f"probabilities differ by {agreement.difference:.3f} (allowed {MOST_DIFFERENCE})"
        if not agreement.difference <= MOST_DIFFERENCE  # NaN neither
        else "",
    ]
    if any(far):
        raise errors.BadValueError(
            f"in int8 the model gives other masks on {agreement.clips} clips: "
            f"{' and '.join(filter(None, far))}. Not written; leave out --int8, or give clips like "
            "those it is for (--data_dir)."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's advice, which it gives to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
