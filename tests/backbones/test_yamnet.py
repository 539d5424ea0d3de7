"""YAMNet against the published network and, where the package is there, on real sounds."""

import csv
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.backbones import get_backbone
from avs_jax.backbones.yamnet import own_log_mel
from avs_jax.convert import from_torch
from avs_jax.media import audio
from avs_jax.weights.tensorflow_files import read_bundle
from tests.parity import fidelity


@pytest.mark.slow
def test_yamnet_equals_published_everywhere():
    found = fidelity.differences("yamnet", fidelity.yamnet_entries())
    assert len(found) == 17
    assert {name: d for name, d in found.items() if not d.within} == {}


@pytest.mark.parametrize("level", [0.0, 1e-4, 1e-2, 1.0, 100.0])
def test_own_offset_is_had_from_vggishs_log_mel(level):
    mel = np.full((1, 96, 64), level)
    given = jnp.asarray(np.log(mel + audio.LOG_OFFSET), jnp.float32)
    np.testing.assert_allclose(own_log_mel(given), np.log(mel + 0.001), atol=1e-5)


def test_rounding_below_silence_gives_no_nan():
    below = jnp.full((1, 96, 64), np.log(audio.LOG_OFFSET) - 1e-3, jnp.float32)
    np.testing.assert_allclose(own_log_mel(below), np.log(0.001), rtol=1e-6)


def test_head_is_there_only_where_asked_for(fill_variables):
    patches = jnp.zeros((1, 96, 64))
    plain = get_backbone("yamnet")
    variables = fill_variables(plain, patches)
    assert "logits" not in variables["params"]
    with pytest.raises(errors.BadValueError, match="num_classes=521"):
        plain.apply(variables, jnp.zeros((1, 1024)), method="classify")


def test_training_updates_statistics(fill_variables):
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(4, 96, 64)), jnp.float32)
    yamnet = get_backbone("yamnet")
    variables = fill_variables(yamnet, patches)
    _, state = yamnet.apply(variables, patches, train=True, mutable="batch_stats")
    before = variables["batch_stats"]["layer3"]["depthwise_bn"]["mean"]
    assert not np.array_equal(state["batch_stats"]["layer3"]["depthwise_bn"]["mean"], before)


@pytest.fixture(scope="module")
def listen(media):
    """`listen(waveform)` -> {AudioSet's name: score} of its first patch, by the real weights."""
    folder = media / "backbones" / "yamnet"
    with (folder / "assets" / "yamnet_class_map.csv").open() as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    yamnet = get_backbone("yamnet", num_classes=521)
    variables = from_torch("yamnet", read_bundle(folder), num_classes=521)

    @jax.jit
    def score(waveform):
        features = yamnet.apply(variables, audio.log_mel(waveform, 1))
        return jax.nn.sigmoid(yamnet.apply(variables, features, method="classify"))[0]

    def run(waveform):
        scores = np.asarray(score(np.resize(waveform, 16_000)))
        return dict(zip(names, scores.tolist(), strict=True))

    return run


@pytest.mark.parametrize(
    ("sound", "name"),
    [("I/trumpet", "Trumpet"), ("F/cat", "Cat"), ("F/cow", "Cattle, bovinae")],
)
def test_real_sound_is_named_right(media, listen, sound, name):
    with wave.open(str(media / "sounds" / f"{sound}.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    scores = listen(samples.astype(np.float32) / 32768)
    scores.pop("Music")  # a trumpet is music, too
    assert max(scores, key=scores.get) == name
    assert scores[name] > 0.4


def test_silence_is_silence(listen):
    scores = listen(np.zeros(16_000, np.float32))
    assert scores["Silence"] > 0.99
    assert max(scores["Music"], scores["Speech"]) < 0.01
