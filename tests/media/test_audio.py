"""The VGGish front end against the published one, and its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import audio
from tests.parity import fill

SECOND = audio.SAMPLE_RATE


@pytest.fixture(scope="module")
def published():
    return fill.expected("log_mel")


def noise(seconds=5.0, seed=0):
    samples = round(seconds * SECOND)
    return jnp.asarray(np.random.default_rng(seed).uniform(-0.5, 0.5, samples), jnp.float32)


def chirp():
    """Four seconds from 200 to 2600 Hz, then silence, as the fixture has it."""
    t = np.arange(5 * SECOND) / SECOND
    wave = np.where(t < 4, 0.3 * np.sin(2 * np.pi * (200 * t + 300 * t**2)), 0.0)
    return wave.astype(np.float32)


def in_float64(wave):
    """The definition, by numpy's FFT in float64 -> [t 96 64]."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), 400)[::160]
    windows = windows[: len(windows) // 96 * 96]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    magnitude = np.abs(np.fft.rfft(windows * hann, 512))
    return np.log(magnitude @ audio.mel_matrix() + 0.01).reshape(-1, 96, 64)


def test_mel_matrix_equals_published(published):
    np.testing.assert_allclose(audio.mel_matrix(), published["mel_matrix"], atol=1e-7)


def test_noise_equals_published(published):
    wave = fill.uniform("log_mel/wave", (80000,), -0.5, 0.5)
    patches = jax.jit(audio.log_mel)(wave)
    np.testing.assert_allclose(patches, published["wave_16k"], atol=2e-4, rtol=0)


def test_tone_equals_published(published):
    patches = jax.jit(audio.log_mel)(chirp())
    np.testing.assert_allclose(patches, published["tone_16k"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("hertz", [100, 1000, 4000, 7001])
def test_silent_bands_beside_a_loud_tone_are_accurate(hertz):
    wave = (0.9 * np.sin(2 * np.pi * hertz * np.arange(SECOND) / SECOND)).astype(np.float32)
    # 7e-5: what rounding the input times the window to float32 leaves; a float32 FFT errs by 6e-4.
    np.testing.assert_allclose(audio.log_mel(jnp.asarray(wave)), in_float64(wave), atol=7e-5)


def test_noise_resampled_from_44k1_is_close_to_published(published):
    wave = fill.uniform("log_mel/wave_44k1_stereo", (220500, 2), -0.5, 0.5)
    mono = audio.resample(wave, 44100)
    patches = np.asarray(audio.log_mel(jnp.asarray(mono)))
    difference = np.abs(patches - published["wave_44k1_stereo"])
    # Two resamplers part where their filters fall off, from 7.2 kHz to 8 kHz: the two top bands.
    assert mono.shape == (80_000,)
    assert difference[..., :62].max() < 1e-3
    assert difference[..., 62].max() < 0.1
    assert difference[..., 63].max() < 0.6


def test_tones_resampled_from_44k1_are_close_to_published(published):
    t = np.arange(220500) / 44100
    wave = np.stack([0.4 * np.sin(2 * np.pi * 440 * t), 0.2 * np.sin(2 * np.pi * 3000 * t)], 1)
    mono = audio.resample(wave.astype(np.float32), 44100)
    patches = np.asarray(audio.log_mel(jnp.asarray(mono)))
    difference = np.abs(patches - published["tone_44k1_stereo"])
    # The sudden start of the tones rings differently; it shows in near-silent bands only.
    assert difference[..., :62].max() < 5e-3
    assert difference.max() < 0.03


@pytest.mark.parametrize("seconds", [1, 2.4, 5, 10])
def test_one_patch_per_second_by_default(seconds):
    patches = audio.log_mel(noise(seconds))
    assert patches.shape == (max(1, round(seconds)), 96, 64)


def test_leading_axes_are_a_batch():
    waves = jnp.stack([noise(2, seed) for seed in range(6)]).reshape(2, 3, -1)
    patches = audio.log_mel(waves)
    assert patches.shape == (2, 3, 2, 96, 64)
    np.testing.assert_allclose(patches[1, 2], audio.log_mel(waves[1, 2]), atol=1e-6)


def test_missing_patches_repeat_the_last():
    patches = audio.log_mel(noise(2.0), num_patches=5)
    whole = audio.log_mel(noise(2.0), num_patches=2)
    np.testing.assert_array_equal(patches[:2], whole)
    np.testing.assert_array_equal(patches[2:], jnp.broadcast_to(whole[1], (3, 96, 64)))


@pytest.mark.parametrize("samples", [0, 100, 15_000])
def test_sound_shorter_than_a_patch_gives_zeros(samples):
    patches = audio.log_mel(jnp.ones(samples), num_patches=3)
    np.testing.assert_array_equal(patches, np.zeros((3, 96, 64)))


def test_shortest_sound_of_one_patch():
    samples = 400 + 95 * 160
    assert np.any(audio.log_mel(jnp.ones(samples)) != 0)
    assert not np.any(audio.log_mel(jnp.ones(samples - 1)) != 0)


def test_patches_beyond_are_cut():
    np.testing.assert_array_equal(audio.log_mel(noise(), 2), audio.log_mel(noise())[:2])


def test_silence_is_the_logarithm_of_the_offset():
    np.testing.assert_allclose(audio.log_mel(jnp.zeros(SECOND)), np.log(0.01), atol=1e-6)


def test_second_alignment_starts_at_each_second():
    wave = noise()
    patches = audio.log_mel(wave, alignment="second")
    for second in range(5):
        alone = audio.log_mel(wave[second * SECOND : second * SECOND + 15_700], 1)[0]
        np.testing.assert_allclose(patches[second], alone, atol=1e-5)


def test_second_alignment_of_ten_seconds_has_ten_patches():
    patches = audio.log_mel(noise(10.0), alignment="second")
    assert patches.shape == (10, 96, 64)
    assert not np.array_equal(patches[8], patches[9])


def test_unknown_alignment_is_refused():
    with pytest.raises(errors.UnknownNameError, match="alignment 'hour'; known: paper, second"):
        audio.log_mel(noise(), alignment="hour")


def test_resample_keeps_16_khz_untouched():
    wave = np.asarray(noise(1.0))
    np.testing.assert_array_equal(audio.resample(wave, 16_000), wave)


def test_resample_averages_channels():
    wave = np.stack([np.full(160, 0.5), np.full(160, -0.1)], axis=1).astype(np.float32)
    np.testing.assert_allclose(audio.resample(wave, 16_000), np.full(160, 0.2), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_resample_keeps_a_tone_and_its_length(rate):
    t = np.arange(rate) / rate
    mono = audio.resample(np.sin(2 * np.pi * 440 * t).astype(np.float32), rate)
    assert mono.shape == (16_000,)
    assert mono.dtype == np.float32
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(mono[200:-200], expected[200:-200], atol=2e-3)


def test_resample_of_nothing_is_nothing():
    assert audio.resample(np.zeros((0, 2), np.float32), 44_100).shape == (0,)


@pytest.mark.parametrize("rate", [0, -16_000, float("nan")])
def test_resample_refuses_a_rate_that_is_not_positive(rate):
    with pytest.raises(errors.BadValueError, match="not positive"):
        audio.resample(np.zeros(10, np.float32), rate)
