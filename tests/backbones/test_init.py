"""Backbones by name: golden sizes, the common contract, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.backbones import (
    BACKBONES,
    PICTURE_BACKBONES,
    SOUND_BACKBONES,
    get_backbone,
    get_normalization,
)

# Trainable parameters, without a classifier. ResNets: torchvision's count less its `fc`; PVTv2: the
# published millions (3.67, 14.01, 25.36, 45.24, 62.56, 81.96) less a head of 1000 classes; VGGish:
# the published file; the light ones pin what is built.
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet50": 23_508_032,
    "pvt_v2_b0": 3_409_760,
    "pvt_v2_b1": 13_496_000,
    "pvt_v2_b2": 24_849_856,
    "pvt_v2_b3": 44_725_696,
    "pvt_v2_b4": 62_043_072,
    "pvt_v2_b5": 81_443_008,
    "efficientnet_lite0": 2_958_848,
    "small_resnet": 444_912,
    "vggish": 72_141_184,
    "yamnet": 3_195_456,
    "audio_cnn": 228_592,
}


def example(name, n=1, dtype=jnp.float32):
    return jnp.zeros((n, 64, 96, 3) if name in PICTURE_BACKBONES else (n, 96, 64), dtype)


def shapes(name, **fields):
    """(variables, output) of a backbone, as shapes."""
    module = get_backbone(name, **fields)
    variables = jax.eval_shape(module.init, jax.random.key(0), example(name))
    return module, variables, jax.eval_shape(module.apply, variables, example(name))


def test_no_backbone_is_without_a_golden_count():
    assert set(PARAMETERS) == set(BACKBONES)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    _, variables, _ = shapes(name)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))
    assert count == PARAMETERS[name]


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "pvt_v2_b0", "efficientnet_lite0", "small_resnet"]
)
def test_pyramid_has_the_stated_channels_and_strides(name):
    module, _, maps = shapes(name)
    assert module.strides == (4, 8, 16, 32)
    for y, stride, channels in zip(maps, module.strides, module.channels, strict=True):
        assert y.shape == (1, 64 // stride, 96 // stride, channels)


@pytest.mark.parametrize("name", SOUND_BACKBONES)
def test_sound_backbone_has_the_stated_features(name):
    module, _, features = shapes(name)
    assert features.shape == (1, module.features)


@pytest.mark.parametrize(
    "name", ["resnet18", "pvt_v2_b0", "efficientnet_lite0", "small_resnet", *SOUND_BACKBONES]
)
def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_float32(name):
    _, variables, output = shapes(name, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["small_resnet", "audio_cnn"])
def test_bfloat16_is_close_to_float32(name, fill_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=example(name, 2).shape), jnp.float32)
    module = get_backbone(name)
    variables = fill_variables(module, x)
    exact = jax.tree.leaves(jax.jit(module.apply)(variables, x))
    coarse = get_backbone(name, dtype=jnp.bfloat16)
    coarse = jax.tree.leaves(jax.jit(coarse.apply)(variables, x))
    for a, b in zip(exact, coarse, strict=True):
        assert np.abs(a - b.astype(jnp.float32)).mean() < 0.05 * np.abs(a).mean()


def test_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(
        errors.UnknownNameError, match=r"unknown backbone 'resnet51'; known: .*pvt_v2"
    ):
        get_backbone("resnet51")


def test_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(
        errors.UnknownNameError, match="field of backbone vggish 'depth'; known: dtype"
    ):
        get_backbone("vggish", depth=3)


def test_normalization_is_imagenets():
    mean, std = get_normalization("pvt_v2_b5")
    np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(std, [0.229, 0.224, 0.225])


def test_normalization_of_lite0_is_its_own():
    mean, std = get_normalization("efficientnet_lite0")
    rgb = np.array([0, 127, 255], np.float32)
    np.testing.assert_allclose((rgb / 255 - mean) / std, (rgb - 127) / 128, atol=1e-6)


def test_normalization_of_a_sound_backbone_is_refused():
    with pytest.raises(errors.UnknownNameError, match="unknown picture backbone 'vggish'"):
        get_normalization("vggish")
