"""One picture at a time gives what a clip gives."""

import numpy as np
import pytest

from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.prediction.live_network import LiveNetwork
from avs_jax.prediction.masks import compile_forward
from tests.weights.zoo import stand_in


@pytest.fixture(scope="module")
def loaded():
    return stand_in.make_loaded()._replace(temperature=2.0)


def test_a_model_that_looks_at_each_picture_alone_marks_as_in_a_clip(loaded):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    sound = rng.uniform(-0.5, 0.5, (1, 2 * SAMPLE_RATE)).astype(np.float32)
    expected = np.asarray(compile_forward(loaded)(frames, sound, np.ones((1, 2), bool)))
    network = LiveNetwork(loaded)
    network.warm_up()
    assert (network.num_pictures, network.size) == (1, 32)
    for i in range(2):
        second = sound[0, i * SAMPLE_RATE :][: network.window]
        found = network.mark(frames[0, i : i + 1], np.ones(1, bool), network.hear(second))
        assert found.shape == (1, 1, 32, 32, 1)
        np.testing.assert_allclose(np.asarray(found)[0, 0], expected[0, i], atol=1e-4)


def test_a_model_of_clips_marks_the_last_of_its_pictures(loaded, monkeypatch):
    monkeypatch.setattr("avs_jax.prediction.live_network.AVESFormer", type(None))
    network = LiveNetwork(loaded)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    sound = rng.uniform(-0.5, 0.5, network.window).astype(np.float32)
    exists = np.array([False, True])
    assert (network.num_pictures, network.window) == (2, 2 * SAMPLE_RATE)
    found = network.mark(frames, exists, network.hear(sound))
    heard = sound * np.repeat(exists, SAMPLE_RATE)
    expected = compile_forward(loaded)(frames[None], heard[None], exists[None])
    np.testing.assert_allclose(np.asarray(found)[0, 0], np.asarray(expected)[0, 1], atol=1e-5)
