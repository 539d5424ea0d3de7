"""VGGish against the published network."""

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.backbones import get_backbone
from tests.parity import fidelity


@pytest.mark.slow
def test_vggish_equals_published_everywhere():
    found = fidelity.differences("vggish", fidelity.vggish_entries())
    assert len(found) == 5
    assert {name: d for name, d in found.items() if not d.within} == {}


def test_features_are_not_negative(fill_variables):
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(2, 96, 64)), jnp.float32)
    vggish = get_backbone("vggish")
    features = vggish.apply(fill_variables(vggish, patches), patches)
    assert features.shape == (2, 128)
    assert features.min() >= 0
    assert features.max() > 0


def test_training_changes_nothing(fill_variables):
    patches = jnp.ones((1, 96, 64))
    vggish = get_backbone("vggish")
    variables = fill_variables(vggish, patches)
    np.testing.assert_array_equal(
        vggish.apply(variables, patches, train=True), vggish.apply(variables, patches)
    )
