"""Models by name, and what importing them needs."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors, models


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="unknown model 'catrr'; known: avesformer"):
        models.get_model("catrr")


def test_unknown_field_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="unknown field of model 'avesformer' 'dmi'"):
        models.get_model("avesformer", dmi=32)


def test_unknown_dtype_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match=r"unknown dtype 'half'; known: .*bfloat16"):
        models.get_model("avesformer", dtype="half")


def test_import_needs_jax_and_flax_alone():
    # What flax brings along (optax, numpy, ...) may be there; nothing else of ours may.
    code = """
import sys
for name in ("tensorflow", "torch", "grain", "tensorflow_datasets", "ml_collections", "cv2", "PIL",
             "av", "soxr", "tensorboardX", "matplotlib", "tqdm", "jaxtyping", "absl.app"):
    sys.modules[name] = None
import avs_jax.models
model = avs_jax.models.get_model("avesformer", backbone="resnet18")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inputs_are_normalised_and_resized():
    frames = jnp.full((1, 2, 8, 8, 3), 255, jnp.uint8)
    waveform = jnp.zeros((1, 32_000))
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    pictures, log_mel = models.model_inputs(frames, waveform, (mean, std), size=4)
    assert pictures.shape == (1, 2, 4, 4, 3)
    assert log_mel.shape == (1, 2, 96, 64)
    np.testing.assert_allclose(pictures[0, 0, 0, 0], [2.0, 3.0, 7.0], rtol=1e-5)
