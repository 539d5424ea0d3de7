"""Converted weights of random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import convert
from avs_jax.models import get_model
from avs_jax.weights import converted

SOURCE = {"file": "resnet18.pth", "sha256": "0" * 64}


def random_variables(network, seed=0):
    rng = np.random.default_rng(seed)
    shapes = convert.target_shapes(network)
    return converted.unflatten(
        {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    )


@pytest.fixture(scope="module")
def resnet18():
    return random_variables("resnet18")


@pytest.fixture
def directory(tmp_path, resnet18):
    converted.save_converted(tmp_path / "resnet18", "resnet18", resnet18, SOURCE)
    return tmp_path / "resnet18"


@pytest.fixture(scope="module")
def model_variables():
    """Shapes of a model on ResNet-18 and the light sound net."""
    model = get_model("avesformer", "resnet18", audio_backbone="audio_cnn")
    frames, log_mel = jnp.zeros((1, 1, 64, 64, 3)), jnp.zeros((1, 1, 96, 64))
    return jax.eval_shape(model.init, jax.random.key(0), frames, log_mel, None)
