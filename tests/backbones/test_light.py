"""The light nets of the quickstart."""

import jax.numpy as jnp
import numpy as np

from avs_jax.backbones import get_backbone


def patches(n=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(-2, 2, size=(n, 96, 64)), jnp.float32)


def test_audio_cnn_gives_features_that_are_not_negative(fill_variables):
    module = get_backbone("audio_cnn")
    features = module.apply(fill_variables(module, patches()), patches())
    assert features.shape == (2, module.features)
    assert features.min() >= 0


def test_audio_cnn_hears_frequency(fill_variables):
    module = get_backbone("audio_cnn")
    low = jnp.full((1, 96, 64), -4.6).at[:, :, 8:12].set(2.0)
    high = jnp.full((1, 96, 64), -4.6).at[:, :, 40:44].set(2.0)
    variables = fill_variables(module, low)
    assert np.abs(module.apply(variables, low) - module.apply(variables, high)).max() > 0.1


def test_audio_cnn_pools_over_time(fill_variables):
    # Shifted by the stride of the last map, 16 frames, away from the borders.
    module = get_backbone("audio_cnn")
    early = jnp.full((1, 96, 64), -2.0).at[:, 34:40].set(2.0)
    late = jnp.full((1, 96, 64), -2.0).at[:, 50:56].set(2.0)
    variables = fill_variables(module, early)
    a, b = module.apply(variables, early), module.apply(variables, late)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_audio_cnn_widths_and_features_are_fields(fill_variables):
    module = get_backbone("audio_cnn", widths=(4, 8), num_features=10)
    assert module.apply(fill_variables(module, patches()), patches()).shape == (2, 10)


def test_small_resnet_has_the_widths_of_the_recipe():
    module = get_backbone("small_resnet")
    assert module.channels == (24, 48, 96, 128)
    assert module.depths == (1, 1, 1, 1)
    assert module.bn_momentum == 0.95


def test_small_resnet_widths_are_fields(fill_variables):
    x = jnp.zeros((1, 32, 32, 3))
    module = get_backbone("small_resnet", widths=(8, 8, 16, 16), stem_width=8)
    maps = module.apply(fill_variables(module, x), x)
    assert [y.shape[-1] for y in maps] == [8, 8, 16, 16]
