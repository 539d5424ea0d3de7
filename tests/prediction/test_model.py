"""Three lines of Python: frames and sound in memory, any of both."""

import numpy as np
import pytest

import avs_jax
from avs_jax import errors
from avs_jax.media import video
from avs_jax.prediction import films
from avs_jax.prediction.masks import compile_forward
from avs_jax.prediction.model import Model
from tests.media import film
from tests.weights.zoo import stand_in


@pytest.fixture(scope="module")
def model():
    return Model(stand_in.make_loaded()._replace(temperature=2.0, threshold=0.48))


def make_frames(count, height=24, width=40):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def make_sound(seconds, rate=16_000):
    return np.random.default_rng(1).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


def test_load_gives_the_model_of_the_package(tmp_path, monkeypatch):
    stand_in.write(tmp_path, monkeypatch, threshold=0.4)
    assert avs_jax.load("lite").loaded.threshold == 0.4
    assert avs_jax.load().loaded.step == 7
    assert "load" in dir(avs_jax)


def test_an_unknown_attribute_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        avs_jax.lode  # noqa: B018


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_every_frame_has_its_mask(model, count):
    masks = model.segment(make_frames(count), make_sound(count), 16_000)
    assert masks.dtype == bool
    assert masks.shape == (count, 24, 40)
    assert masks.any((1, 2)).all()
    assert not masks.all()


@pytest.mark.parametrize("seconds", [3, 5])
def test_masks_are_those_that_predict_makes_of_the_film(tmp_path, model, seconds):
    path = film.write_film(
        tmp_path / "a.mkv",
        seconds=seconds,
        fps=1,
        size=(40, 24),
        sound_codec="pcm_s16le",
        rate=16_000,
        layout="mono",
    )
    info = video.probe(path)
    frames = np.stack([frame.rgb() for frame in video.read_frames(info)])
    sound = np.concatenate(list(video.read_sound(info)))
    data = model.loaded.config.data
    expected = films.predict_masks(
        info,
        compile_forward(model.loaded),
        size=data.size,
        seconds=data.seconds,
        frame_offset=data.frame_offset,
        threshold=0.48,
    )
    masks = model.segment(frames, sound, 16_000)
    np.testing.assert_array_equal(masks, [mask.pixels for mask in expected])


def test_a_mask_is_where_the_probability_is_above_the_model_s_threshold(model):
    frames, sound = make_frames(3), make_sound(3)
    probabilities = model.segment(frames, sound, 16_000, probabilities=True)
    assert probabilities.dtype == np.float32
    for threshold, given in ((0.48, None), (0.52, 0.52)):
        masks = model.segment(frames, sound, 16_000, threshold=given)
        np.testing.assert_array_equal(masks, probabilities > threshold)


def test_temperature_divides_the_logits(model):
    def odds(model):
        p = model.segment(make_frames(2), make_sound(2), 16_000, probabilities=True)
        return np.log(p / (1 - p))

    as_trained = Model(model.loaded._replace(temperature=1.0))
    np.testing.assert_allclose(odds(as_trained), 2 * odds(model), atol=1e-4)


def test_other_rates_channels_and_types_sound_alike(model):
    times = np.arange(96_000) / 48_000
    mono = film.tone(times).astype(np.float32)
    stereo = np.stack([mono * 1.5, mono * 0.5], axis=1)
    frames = make_frames(2)
    given = [
        (mono, 48_000),
        (stereo, 48_000),
        ((mono * 32_768).astype(np.int16), 48_000),
        (film.tone(np.arange(32_000) / 16_000), 16_000),
    ]
    found = [model.segment(frames, *sound, probabilities=True) for sound in given]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-3)


def test_of_more_classes_masks_are_ids():
    loaded = stand_in.make_loaded(num_classes=11)
    masks = Model(loaded).segment(make_frames(2), make_sound(2), 16_000)
    assert masks.dtype == np.uint8
    assert masks.max() < len(Model(loaded).class_names) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": make_frames(1)[0]}, r"frames are uint8\[24, 40, 3\]; wanted uint8\[t h w 3\]"),
        ({"frames": make_frames(1) / 255.0}, r"frames are float64.*; wanted uint8"),
        ({"frames": make_frames(0)}, "one frame or more"),
        ({"waveform": np.zeros(10, np.int64)}, "waveform is int64; wanted floats"),
        ({"waveform": np.zeros((2, 16_000))}, "with the channels last"),
        ({"waveform": np.full(10, 3000.0)}, "largest sample of waveform is 3000"),
        ({"waveform": np.full(10, np.nan)}, "largest sample of waveform is nan"),
        ({"waveform": np.zeros(0)}, "give frames_per_second"),
        ({"sample_rate": 0}, "sample rate 0 Hz is not positive"),
        ({"frames_per_second": 0}, "frames_per_second=0: wanted a positive number"),
        ({"threshold": 1.0}, "threshold=1.0: wanted a number between 0 and 1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(model, change, message):
    given = {"frames": make_frames(1), "waveform": make_sound(1), "sample_rate": 16_000}
    with pytest.raises(errors.BadValueError, match=message):
        model.segment(**given | change)


def test_no_sound_is_silence_where_the_rate_is_given(model):
    frames = make_frames(2)
    silent = model.segment(frames, np.zeros(0), 16_000, frames_per_second=1, probabilities=True)
    zeros = model.segment(frames, np.zeros(32_000), 16_000, probabilities=True)
    np.testing.assert_array_equal(silent, zeros)


def test_listening_needs_a_backbone_that_knows_names(model):
    with pytest.raises(errors.BadValueError, match="sound backbone, audio_cnn, has no names"):
        model.listen(make_sound(1), 16_000)
