"""Models in int8: what is quantised, what is not, and what is refused."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from avs_jax import errors
from tests.exporting.test_onnx_file import INPUTS

RNG = np.random.default_rng(0)
KERNELS = [
    RNG.normal(size=(3, 3, *ends)).astype(np.float32) / 5
    for ends in ((3, 8), (8, 8), (8, 6), (6, 1))
]


def convolve(x, kernel):
    return lax.conv_general_dilated(
        x, jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def segment(frames, waveform, scope="backbone"):
    """Three convolutions of a backbone, one of none."""
    x = frames[0] / 255.0
    with jax.named_scope(scope):
        x = jax.nn.relu(convolve(x, KERNELS[0]))
        x = jax.nn.relu6(convolve(x, KERNELS[1]))
        x = convolve(x, KERNELS[2])
    return jax.nn.sigmoid(convolve(x, KERNELS[3]) + waveform.std())[None]


@pytest.fixture
def int8(onnx):
    return importlib.import_module("avs_jax.exporting.int8")


@pytest.fixture
def write(int8):
    """`write(function)` -> its model in float."""
    onnx_file = importlib.import_module("avs_jax.exporting.onnx_file")
    return lambda function=segment: onnx_file.make(function, INPUTS)[0]


def make_clips(count=4):
    frames, waveform = INPUTS["frames"].shape, INPUTS["waveform"].shape
    return [
        {
            "frames": RNG.integers(0, 256, frames, np.uint8),
            "waveform": RNG.normal(0, 0.1, waveform).astype(np.float32),
        }
        for _ in range(count)
    ]


def test_weights_are_int8_with_a_scale_a_channel(onnx, int8, write):
    small, _ = int8.quantise(write(), make_clips(), 0.5)
    numbers = {x.name: onnx[0].numpy_helper.to_array(x) for x in small.graph.initializer}
    weights = [x for x in numbers.values() if x.dtype == np.int8 and x.ndim == 4]
    assert sorted(x.shape for x in weights) == [(8, 3, 3, 3), (8, 8, 3, 3)]
    scales = [
        numbers[node.input[1]].shape
        for node in small.graph.node
        if node.op_type == "DequantizeLinear" and numbers.get(node.input[0], 0) is weights[0]
    ]
    assert scales == [(8,)]


def test_the_last_convolution_of_a_backbone_and_what_is_outside_stay_in_float(onnx, int8, write):
    small, _ = int8.quantise(write(), make_clips(), 0.5)
    floats = [
        tuple(x.dims)
        for x in small.graph.initializer
        if x.data_type == onnx[0].TensorProto.FLOAT and len(x.dims) == 4
    ]
    assert sorted(floats) == [(1, 6, 3, 3), (6, 8, 3, 3)]


def test_a_model_can_be_quantised_twice(int8, write):
    model = write()
    first, second = (int8.quantise(model, make_clips(), 0.5)[0] for _ in range(2))
    assert first.ByteSize() == second.ByteSize()


def test_agreement_is_that_of_clips_that_were_not_calibrated_on(int8, write, monkeypatch):
    clips, read = make_clips(6), []
    monkeypatch.setattr(int8.Reader, "__init__", lambda self, clips: read.extend(clips))
    monkeypatch.setattr(int8.Reader, "get_next", lambda self: read.pop() if read else None)
    compared = []
    monkeypatch.setattr(
        int8, "compare", lambda *x: compared.extend(x[2]) or int8.Agreement(3, 1.0, 0.0, 0.0)
    )
    int8.quantise(write(), clips, 0.5)
    assert [id(x) for x in compared] == [id(x) for x in clips[1::2]]


def test_masks_that_are_too_far_from_the_models_are_refused(int8, write):
    dark = [
        {name: x // 50 if name == "frames" else x for name, x in clip.items()}
        for clip in make_clips()
    ]
    mixed = [clip for pair in zip(dark, make_clips(), strict=True) for clip in pair]
    with pytest.raises(errors.BadValueError, match=r"other masks on 4 clips: .*Not written"):
        int8.quantise(write(), mixed, 0.5)


@pytest.mark.parametrize(
    ("iou", "difference", "told"),
    [
        (0.79, 0.0, r"IoU of their masks is 0\.790 \(wanted 0\.85 or more\)\. Not"),
        (1.0, 0.03, r"clips: probabilities differ by 0\.030 \(allowed 0\.02\)"),
        (1.0, float("nan"), "probabilities differ by nan"),
    ],
)
def test_each_bound_is_told(int8, iou, difference, told):
    with pytest.raises(errors.BadValueError, match=told):
        int8.check(int8.Agreement(9, iou, difference, 0.0))


def test_a_model_without_a_backbone_is_refused(int8, write):
    with pytest.raises(errors.BadValueError, match="no backbone with two convolutions"):
        int8.quantise(write(lambda *x: segment(*x, scope="head")), make_clips(), 0.5)


def test_of_several_classes_the_likeliest_is_the_mask(int8):
    probabilities = np.float32([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]]).reshape(1, 1, 1, 2, 3)
    np.testing.assert_array_equal(int8.decide(probabilities, 0.1).ravel(), [1, 0])


def test_clips_on_which_nothing_is_marked_show_nothing_and_are_refused(int8, write):
    told = "marks nothing on the 2 clips that it is compared on, .* Not written"
    with pytest.raises(errors.BadValueError, match=told):
        int8.quantise(write(), make_clips(), 1.0)  # no probability is above it
