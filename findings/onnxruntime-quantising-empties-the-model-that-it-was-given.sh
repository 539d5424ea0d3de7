#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2: quantize_static(model, file, reader) writes its result to a file,
# so one expects the model in memory to be as before. It is not: to calibrate, the model is saved
# with external data, which moves every initialiser of 1 KB or more out of the very object that was
# passed, into a temporary folder that is gone when the call returns. The weights are lost: the same
# call on the same object raises ValidationError, and saving the model writes names of files that are
# nowhere. A path in place of an object is safe, as is copy.deepcopy(model) or model.CopyFrom.
#
# Seen: call 1: w is in the model before, in a file after; call 2: ValidationError; copy: w stays
# Source: onnxruntime/python/tools/quantization/quantize.py and calibrate.py (onnx.save_model with
# save_as_external_data=True changes the object it saves, as onnx's documentation says of itself).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import quantization

weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
    "graph",
    [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64])],
    [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 64])],
    [weight],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


class Reader(quantization.CalibrationDataReader):
    def __init__(self):
        self.inputs = [{"x": np.full((1, 64), value, np.float32)} for value in (-1, 1)]

    def get_next(self):
        return self.inputs.pop() if self.inputs else None


def is_inside(model):
    return model.graph.initializer[0].data_location == onnx.TensorProto.DEFAULT


copied = copy.deepcopy(model)
quantization.quantize_static(copy.deepcopy(copied), "int8.onnx", Reader())
kept = is_inside(copied)

before = is_inside(model)
quantization.quantize_static(model, "int8.onnx", Reader())
after = is_inside(model)
try:
    quantization.quantize_static(model, "int8.onnx", Reader())
    second = "no error"
except Exception as error:
    second = type(error).__name__
print(
    f"call 1: w is in the {'model' if before else 'file'} before, "
    f"in {'the model' if after else 'a file'} after; call 2: {second}; "
    f"copy: w {'stays' if kept else 'goes'}"
)
assert before and not after and second == "ValidationError" and kept
PYTHON
