"""See and decide, in one view or in several (test-time augmentation)."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.models import MODELS, get_model
from avs_jax.models.forward import init_shapes
from avs_jax.scoring import views
from avs_jax.scoring.views import Network

CONFIG = ml_collections.FrozenConfigDict(
    {"model": {"backbone": "small_resnet"}, "data": {"size": 64, "alignment": "paper"}}
)


def _lopsided(classes=1):
    """A network whose logits tell what is bright, and more so at the left."""

    def see(variables, batch):
        return batch["frames"].astype(jnp.float32).mean(-1) / 50 - 2

    def decide(variables, bright, batch):
        width = bright.shape[-1]
        logits = bright * (1 - jnp.arange(width) / width)
        return logits[..., None] * jnp.arange(1, classes + 1)

    return Network(see, decide)


def _batch(size=6):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, size, size, 3)).astype(np.uint8)
    return {"frames": jnp.asarray(frames), "frame_mask": jnp.ones((2, 3), bool)}


def _run(network, batch):
    return network.decide({}, network.see({}, batch), batch)


def test_flip_mirrors_the_frames_and_the_logits_back():
    batch = _batch()
    mirrored = batch | {"frames": batch["frames"][..., ::-1, :]}
    expected = _run(_lopsided(), mirrored)[:, :, :, ::-1]
    np.testing.assert_array_equal(_run(views.flip(_lopsided()), batch), expected)


@pytest.mark.parametrize("classes", [1, 4])
def test_average_is_of_probabilities(classes):
    network, batch = _lopsided(classes), _batch()
    both = [_run(network, batch), _run(views.flip(network), batch)]
    found = _run(views.average([network, views.flip(network)]), batch)
    activation = jax.nn.sigmoid if classes == 1 else jax.nn.softmax
    expected = (activation(both[0]) + activation(both[1])) / 2
    np.testing.assert_allclose(activation(found), expected, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
def test_average_of_certain_logits_is_finite(classes):
    logits = jnp.array([[200.0] * classes, [-300.0] * classes])
    assert jnp.isfinite(views.average_logits(logits)).all()


@pytest.mark.parametrize("classes", [1, 3])
def test_average_keeps_nan(classes):
    assert not jnp.isfinite(views.average_logits(jnp.full((2, classes), jnp.nan))).any()


@flax.struct.dataclass
class Seen:
    frames: jax.Array
    size: tuple = flax.struct.field(pytree_node=False)


class Sizes(nn.Module):
    """A model that keeps the sizes of the pictures it is given."""

    def __call__(self, frames, log_mel, frame_mask=None, train=False):
        return self.decide(self.see(frames, frame_mask, train), log_mel, frame_mask, train)

    def see(self, frames, frame_mask=None, train=False):
        sizes.append(frames.shape[2])
        return Seen(frames, frames.shape[2:4])

    def decide(self, seen, log_mel, frame_mask=None, train=False):
        return {"logits": seen.frames[..., :1]}


sizes = []


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ((), [64]),
        (("flip",), [64, 64]),
        (("scales",), [64, 64, 96]),
        (("flip", "scales"), [64, 64, 64, 64, 96, 96]),
    ],
    ids=str,
)
def test_augmentation_sees_every_view_once(augment, expected):
    network = views.make_network(Sizes(), CONFIG, augment)
    sizes.clear()
    batch = _batch(64) | {"waveform": jnp.zeros((2, 48_000))}
    seen = network.see({}, batch)
    assert sorted(sizes) == sorted(expected)
    logits = network.decide({}, seen, batch)
    assert logits.shape == (2, 3, 64, 64, 1)
    assert len(sizes) == len(expected)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_view(name):
    fields = {"name": name, "backbone": "small_resnet", "audio_backbone": "audio_cnn"}
    model = get_model(**fields)
    shapes = init_shapes(model, 3, 64)
    network = views.make_network(model, CONFIG, views.AUGMENTATIONS)
    batch = _batch(64) | {"waveform": jnp.zeros((2, 48_000))}
    logits = jax.eval_shape(lambda v, b: network.decide(v, network.see(v, b), b), shapes, batch)
    assert logits.shape == (2, 3, 64, 64, 1)


def test_views_have_sizes_that_the_strides_divide():
    assert [views.scaled(224, scale) for scale in views.SCALES] == [224, 160, 288]
    assert [views.scaled(96, scale) for scale in views.SCALES] == [96, 64, 128]


def test_unknown_augmentation_is_refused():
    with pytest.raises(errors.UnknownNameError, match="augmentation 'rotate'; known: flip, scales"):
        views.make_network(Sizes(), CONFIG, ("rotate",))
