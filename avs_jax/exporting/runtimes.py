"""An ONNX model run by this machine's ONNX Runtime or OpenVINO, and what that takes beside XLA."""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import onnxruntime

from avs_jax import errors


def start_onnxruntime(data: bytes) -> Callable[..., np.ndarray]:
    """`run(**inputs) -> output`, the first, on the CPU.

    Raises:
      BadValueError: ONNX Runtime cannot run the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    except Exception as error:  # its own kinds inherit from nothing else
        reason = str(error).partition("\n")[0]
        raise errors.BadValueError(
            f"ONNX Runtime refuses the model ({reason}). Not written; export to .npz instead."
        ) from error
    return lambda **inputs: session.run(None, inputs)[0]


def start_openvino(data: bytes) -> Callable[..., np.ndarray]:
    """`run(**inputs) -> output`, the first, on the CPU, in float32.

    Raises:
      NotFoundError: OpenVINO is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise errors.NotFoundError("OpenVINO is not installed: pip install openvino.")
    # With this module its import tells Google Analytics, from a forked process; without, nobody.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    core = openvino.Core()
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(data)
        file.flush()
        # Without the hint it takes bfloat16 where the CPU has it.
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(core.read_model(file.name), "CPU", hints)
    return lambda **inputs: np.array(compiled(inputs)[compiled.output(0)])


class Cost(NamedTuple):
    """Of a runtime: medians over rounds, in seconds, and medians of the ratios to XLA."""

    seconds: float
    ratio: float
    cpu_seconds: float  # of all threads: what else the machine does disturbs it less
    cpu_ratio: float
    difference: float  # of outputs from XLA's, the largest


def time_runtimes(
    data: bytes,
    segment: Callable,
    inputs: Mapping[str, np.ndarray],
    rounds: int,
    others: Mapping[str, bytes] | None = None,
) -> dict[str, Cost]:
    """Cost by runtime: XLA, ONNX Runtime and, where it is installed, OpenVINO.

    All run once in every round, in turn forwards and backwards, after once that is not counted.

    Args:
      data: of the ONNX file that `segment`, a function of jax, was written to.
      others: further ONNX files of it by what they are called, e.g. "int8".
    """
    compiled = jax.jit(segment)
    starts = {"ONNX Runtime": start_onnxruntime}
    if importlib.util.find_spec("openvino") is not None:
        starts["OpenVINO"] = start_openvino
    runs = {"XLA": lambda **inputs: np.asarray(compiled(*inputs.values()))}
    for called, file in {"": data, **(others or {})}.items():
        runs |= {f"{name} {called}".strip(): start(file) for name, start in starts.items()}
    outputs = {name: run(**inputs) for name, run in runs.items()}
    times = {name: np.zeros((2, rounds)) for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            began = np.array([time.perf_counter(), time.process_time()])
            runs[name](**inputs)
            times[name][:, i] = np.array([time.perf_counter(), time.process_time()]) - began
    costs = {}
    for name in runs:
        (seconds, cpu), (ratio, cpu_ratio) = (
            np.median(x, axis=1).tolist() for x in (times[name], times[name] / times["XLA"])
        )
        difference = float(np.abs(outputs[name] - outputs["XLA"]).max())
        costs[name] = Cost(seconds, ratio, cpu, cpu_ratio, difference)
    return costs


def to_table(costs: Mapping[str, Cost]) -> str:
    """A line a runtime."""
    lines = [f"{'':18}  {'ms':>8}  {'ratio':>6}  {'CPU ms':>8}  {'ratio':>6}  {'difference':>10}"]
    for name, cost in costs.items():
        lines.append(
            f"{name:18}  {cost.seconds * 1e3:8.1f}  {cost.ratio:6.3f}  "
            f"{cost.cpu_seconds * 1e3:8.1f}  {cost.cpu_ratio:6.3f}  {cost.difference:10.1e}"
        )
    return "\n".join(lines)
