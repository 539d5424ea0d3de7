"""The timbres of sounding_shapes."""

import numpy as np
import pytest

from avs_jax.data.sounding_shapes import shapes, timbres

KINDS = range(len(timbres.TIMBRES))


def sing(kind, seed=0):
    return timbres.sing(kind, timbres.Voice.draw(np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_second_of_even_loudness(kind):
    sound = sing(kind)
    assert sound.shape == (16000,) and sound.dtype == np.float32
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(1.0, abs=0.12)  # less what the fades take


@pytest.mark.parametrize("kind", KINDS)
def test_fades_in_and_out_without_a_click(kind):
    sound = sing(kind)
    assert np.abs(sound[[0, -1]]).max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_voice_sounds_the_same(kind):
    np.testing.assert_array_equal(sing(kind, 3), sing(kind, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_two_voices_sound_different(kind):
    assert np.abs(sing(kind, 1) - sing(kind, 2)).max() > 0.1


def test_every_look_has_a_timbre():
    assert len(timbres.TIMBRES) == len(shapes.LOOKS)


def test_classes_can_be_told_apart_by_ear():
    # A nearest-neighbour listener on spectra and envelopes; chance is 0.1.
    def features(sound):
        spectrum = np.log(np.abs(np.fft.rfft(sound))[:7936].reshape(62, 128).mean(1) + 1)
        envelope = np.sort(np.abs(sound).reshape(100, 160).mean(1))
        return np.concatenate([spectrum, 2 * envelope])

    def hear(seeds):
        pairs = [(features(sing(kind, seed)), kind) for kind in KINDS for seed in seeds]
        return np.stack([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])

    known, kinds = hear(range(20))
    heard, truth = hear(range(100, 106))
    nearest = ((heard[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    assert (kinds[nearest] == truth).mean() > 0.9
