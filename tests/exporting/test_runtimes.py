"""Timing runtimes beside XLA."""

import importlib
import sys
from unittest import mock

import numpy as np
import pytest

from avs_jax import errors
from tests.exporting.test_onnx_file import INPUTS, segment


@pytest.fixture
def runtimes(onnx):
    return importlib.import_module("avs_jax.exporting.runtimes")


def test_every_runtime_has_its_line_and_xla_is_the_measure(runtimes):
    onnx_file = importlib.import_module("avs_jax.exporting.onnx_file")
    model, _ = onnx_file.make(segment, INPUTS)
    _, example = next(onnx_file.examples(INPUTS))
    costs = runtimes.time_runtimes(model.SerializeToString(), segment, example, rounds=2)
    assert list(costs)[:2] == ["XLA", "ONNX Runtime"]
    assert costs["XLA"].ratio == costs["XLA"].cpu_ratio == 1
    assert all(cost.seconds > 0 and cost.difference < 1e-5 for cost in costs.values())
    table = runtimes.to_table(costs).splitlines()
    assert [line[:18].strip() for line in table] == ["", *costs]


def test_other_files_of_the_model_have_lines_of_their_own(runtimes):
    onnx_file = importlib.import_module("avs_jax.exporting.onnx_file")
    model, _ = onnx_file.make(segment, INPUTS)
    other, _ = onnx_file.make(lambda *x: segment(*x) + 0.25, INPUTS)
    _, example = next(onnx_file.examples(INPUTS))
    files = (model.SerializeToString(), {"int8": other.SerializeToString()})
    costs = runtimes.time_runtimes(files[0], segment, example, 1, files[1])
    assert costs["ONNX Runtime int8"].difference == pytest.approx(0.25)
    assert costs["ONNX Runtime"].difference < 1e-5


def test_a_model_that_the_runtime_does_not_take_is_refused(runtimes):
    with pytest.raises(errors.BadValueError, match="ONNX Runtime refuses the model"):
        runtimes.start_onnxruntime(np.ones(9).tobytes())


def test_openvino_is_named_where_it_lacks(runtimes, monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(errors.NotFoundError, match="pip install openvino"):
        runtimes.start_openvino(b"")


def test_openvino_is_kept_from_telling_other_machines(runtimes, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino", mock.MagicMock())
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _: True)
    runtimes.start_openvino(b"")
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")
