"""What sounds when, as plain numbers: of masks, of sound, of what is heard."""

import json

import numpy as np
import pytest

from avs_jax.media import audio
from avs_jax.media.video import VideoInfo
from avs_jax.prediction.films import Mask
from avs_jax.prediction.model import Heard
from avs_jax.prediction.timeline import MEL_COLUMNS, Timeline, mel_envelope, waveform_envelope


def make_info(seconds=2.0):
    return VideoInfo("/films/a<b>.mp4", 8, 4, 25.0, seconds, 0.0, 16_000, 1, "")


def make_mask(time, marked, peaks, binary=True):
    """A mask of 8 x 4 pixels; `marked`: class id -> how many pixels."""
    pixels = np.zeros(32, np.uint8)
    begin = 0
    for kind, count in marked.items():
        pixels[begin : begin + count] = kind
        begin += count
    return Mask(time, pixels.reshape(4, 8), binary, np.array(peaks, np.float32))


def describe(masks, seconds=2.0, heard=(), **settings):
    timeline = Timeline(make_info(seconds), **settings)
    for mask in masks:
        timeline.add(mask)
    return timeline.describe(np.zeros(int(seconds * 16_000), np.float32), heard)


def test_a_mask_counts_with_its_probability_and_its_share_of_the_picture():
    described = describe([make_mask(0.5, {1: 8}, [0.9])])
    assert described["marks"] == [
        {"time": 0.5, "marked": [{"id": 1, "probability": 0.9, "share": 0.25}]}
    ]
    assert described["classes"] == [{"id": 1, "name": "sounding", "colour": "#ff2882"}]


def test_a_second_has_the_greatest_of_its_masks():
    masks = [make_mask(0.25, {1: 8}, [0.7]), make_mask(0.75, {1: 4}, [0.9])]
    described = describe([*masks, make_mask(1.25, {}, [0.1])])
    marked = [second["marked"][0] for second in described["seconds"]]
    assert [(one["probability"], one["share"]) for one in marked] == [(0.9, 0.25), (0.1, 0.0)]


def test_classes_are_those_that_were_marked_without_the_background():
    names = ("background", "dog", "cat", "car")
    mask = make_mask(0.5, {2: 16}, [1.0, 0.2, 0.8, 0.1], binary=False)
    described = describe([mask], class_names=names)
    assert [one["name"] for one in described["classes"]] == ["cat"]
    assert described["seconds"][0]["marked"] == [{"name": "cat", "probability": 0.8, "share": 0.5}]


def test_heard_names_below_noise_are_left_out():
    heard = [[Heard("Dog", 0.8), Heard("Cat", 0.01)], []]
    described = describe([make_mask(0.5, {}, [0.1])], heard=heard)
    assert described["seconds"][0]["heard"] == [{"name": "Dog", "probability": 0.8}]
    assert described["seconds"][1] == {"second": 1, "marked": [], "heard": []}


def test_it_is_json_and_names_the_film_without_its_folder():
    described = json.loads(json.dumps(describe([make_mask(0.5, {1: 3}, [0.6])])))
    assert described["film"] == {"name": "a<b>.mp4", "seconds": 2.0, "width": 8, "height": 4}


def test_length_is_that_of_the_sound_where_the_header_says_none():
    timeline = Timeline(make_info(None))
    timeline.add(make_mask(0.5, {}, [0.1]))
    assert timeline.describe(np.zeros(40_000, np.float32))["film"]["seconds"] == 2.5


def test_waveform_columns_hold_its_extremes():
    sound = np.zeros(16_100, np.float32)
    sound[[450, 500, 16_050]] = 0.5, -0.25, 1.0
    low, high = waveform_envelope(sound)
    assert len(low) == len(high) == 41
    assert (low[1], high[1], high[40]) == (-0.25, 0.5, 1.0)
    assert not np.delete(high, [1, 40]).any()


@pytest.mark.parametrize("seconds", [0, 1, 11])
def test_log_mel_columns_are_of_whole_seconds(seconds):
    sound = np.random.default_rng(0).normal(0, 0.1, seconds * 16_000).astype(np.float32)
    assert mel_envelope(sound).shape == (seconds * MEL_COLUMNS, 64)


def test_a_tone_is_seen_in_its_band_while_it_sounds():
    times = np.arange(32_000) / 16_000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * times) * (times >= 1)).astype(np.float32)
    columns = mel_envelope(tone)
    silence, loud = columns[0], columns[12]
    np.testing.assert_allclose(silence, np.log(audio.LOG_OFFSET), atol=0.01)
    assert int(loud.argmax()) == 19  # of 64: 1 kHz is 31 % of the way from 125 to 7500 Hz in mel
    assert loud.max() > 2
