"""Models by name, and what importing them needs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from avs_jax import errors, models


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="unknown model 'catrr'; known: avesformer"):
        models.get_model("catrr")


def test_unknown_field_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="unknown field of model 'avesformer' 'dmi'"):
        models.get_model("avesformer", dmi=32)


def test_the_former_switch_of_the_sound_backbone_is_refused():
    # `optimizer.freeze` decides; configs of earlier versions: see weights/trained.py.
    with pytest.raises(errors.UnknownNameError, match=r"field .* 'freeze_audio'"):
        models.get_model("catr", freeze_audio=True)


@pytest.mark.parametrize("field", ["norm", "remat"])
def test_unknown_policy_lists_the_known_ones(field):
    with pytest.raises(errors.UnknownNameError, match=f"unknown {field} 'sync'; known: "):
        models.get_model("catr", **{field: "sync"})


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


@pytest.mark.parametrize("name", models.MODELS)
def test_model_runs_on_the_small_pretrained_backbones(name):
    model = models.get_model(name, "efficientnet_lite0", audio_backbone="yamnet")
    frames, log_mel = jnp.zeros((1, 5, 224, 224, 3)), jnp.zeros((1, 5, 96, 64))
    variables = jax.eval_shape(model.init, jax.random.key(0), frames, log_mel)
    outputs = jax.eval_shape(model.apply, variables, frames, log_mel)
    assert outputs["logits"].shape == (1, 5, 224, 224, 1)
