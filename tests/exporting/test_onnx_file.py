"""Files that are compared with what they were made of."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from avs_jax import errors

INPUTS = {
    "frames": jax.ShapeDtypeStruct((1, 2, 8, 8, 3), jnp.uint8),
    "waveform": jax.ShapeDtypeStruct((1, 3200), jnp.float32),
}


def segment(frames, waveform):
    """Bright surroundings, where it is loud."""
    padding = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))
    bright = lax.reduce_window(
        frames[..., :1] / 255.0, -jnp.inf, lax.max, (1, 1, 3, 3, 1), (1,) * 5, padding
    )
    return jax.nn.sigmoid(2 * bright + waveform.std())


@pytest.fixture
def onnx_file(onnx):
    return importlib.import_module("avs_jax.exporting.onnx_file")


def test_the_file_gives_the_functions_numbers_and_its_manifest(onnx, onnx_file):
    model, difference = onnx_file.make(segment, INPUTS)
    assert difference < 1e-6
    session = onnx[1].InferenceSession(onnx_file.to_bytes(model, {"classes": ["a"]}))
    assert json.loads(session.get_modelmeta().custom_metadata_map["manifest"])["classes"] == ["a"]
    for _, example in onnx_file.examples(INPUTS):
        (found,) = session.run(["probabilities"], example)
        np.testing.assert_allclose(found, jax.jit(segment)(**example), atol=1e-6)


def test_numbers_that_are_wrong_at_one_edge_are_refused(onnx_file, monkeypatch):
    table = onnx_file.jaxpr_to_onnx.TABLE
    right = table["reduce_window_max"]

    def shifted(*values, padding, **params):
        padding = [(0, low + high) for low, high in padding]
        return right(*values, padding=padding, **params)

    monkeypatch.setitem(table, "reduce_window_max", shifted)
    monkeypatch.setattr(onnx_file.jaxpr_to_onnx, "check_parameters", lambda *_, **__: None)
    with pytest.raises(errors.BadValueError, match=r"other numbers for noise.*Not written"):
        onnx_file.make(segment, INPUTS)


def test_what_is_larger_than_a_file_can_be_is_refused(onnx_file, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 100)
    with pytest.raises(errors.BadValueError, match=r"ONNX files end at 2\.1 GB"):
        onnx_file.make(segment, INPUTS)


def test_examples_are_of_the_inputs_and_differ_from_second_to_second(onnx_file):
    for _, example in onnx_file.examples(INPUTS):
        for name, wanted in INPUTS.items():
            assert (example[name].shape, example[name].dtype) == (wanted.shape, wanted.dtype)
        assert (example["frames"][:, 0] != example["frames"][:, 1]).any()
        assert example["waveform"].std() > 0.01
