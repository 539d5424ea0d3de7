"""EfficientNet-Lite0 against the published network and, where the package is there, its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from avs_jax import errors
from avs_jax.backbones import get_backbone, get_normalization
from avs_jax.convert import from_torch
from avs_jax.weights.torch_files import read_torch_file
from tests.parity import fidelity

GERMAN_SHEPHERD, GIANT_PANDA = 235, 388  # ImageNet's ids


@pytest.mark.slow
def test_lite0_equals_published_everywhere():
    found = fidelity.differences("efficientnet_lite0", fidelity.efficientnet_lite0_entries())
    assert len(found) == 18
    assert {name: d for name, d in found.items() if not d.within} == {}


def test_head_is_there_only_where_asked_for(fill_variables):
    x = jnp.zeros((1, 64, 64, 3))
    plain = get_backbone("efficientnet_lite0")
    variables = fill_variables(plain, x)
    assert "fc" not in variables["params"]
    with pytest.raises(errors.BadValueError, match="num_classes=1000"):
        plain.apply(variables, jnp.zeros((1, 2, 2, 320)), method="classify")


def test_head_scores_every_cell_of_the_last_map(fill_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 96, 3)), jnp.float32)
    lite0 = get_backbone("efficientnet_lite0", num_classes=10)
    variables = fill_variables(lite0, x)
    cells = lite0.apply(variables, lite0.apply(variables, x)[-1], method="classify")
    assert cells.shape == (2, 2, 3, 10)


def test_training_updates_statistics_and_drops_paths(fill_variables):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    lite0 = get_backbone("efficientnet_lite0")
    variables = fill_variables(lite0, x)
    rngs = {"dropout": jax.random.key(0)}

    def run(train, **kwargs):
        maps, state = lite0.apply(variables, x, train, mutable="batch_stats", **kwargs)
        return maps[-1], state["batch_stats"]["blocks_3"]["bn1"]["mean"]

    before = variables["batch_stats"]["blocks_3"]["bn1"]["mean"]
    last, mean = run(True, rngs=rngs)
    other, _ = run(True, rngs={"dropout": jax.random.key(1)})
    assert not np.array_equal(mean, before)
    assert not np.array_equal(last, other)
    np.testing.assert_array_equal(run(False)[1], before)


@pytest.mark.parametrize(
    ("picture", "name"),
    [("farm_animals/dog.webp", GERMAN_SHEPHERD), ("world_animals/panda.webp", GIANT_PANDA)],
)
def test_real_picture_is_named_right(torch, media, picture, name):
    del torch  # it reads the file
    lite0 = get_backbone("efficientnet_lite0", num_classes=1000)
    file = media / "backbones" / "efficientnet-lite0-57934424.pth"
    variables = from_torch("efficientnet_lite0", read_torch_file(file), num_classes=1000)
    rgb = Image.open(media / "pictures" / "examples" / picture).convert("RGB").resize((224, 224))
    mean, std = get_normalization("efficientnet_lite0")
    x = ((np.asarray(rgb, np.float32) / 255 - mean) / std)[None]

    @jax.jit
    def classify(variables, x):
        return lite0.apply(variables, lite0.apply(variables, x)[-1], method="classify")

    logits = np.asarray(classify(variables, x)).mean(axis=(0, 1, 2))
    assert logits.argmax() == name
    assert jax.nn.softmax(logits).max() > 0.9
