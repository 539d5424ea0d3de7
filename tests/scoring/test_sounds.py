"""Other sounds for a clip."""

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.scoring import sounds
from tests.scoring.made_up import CLIPS, MadeUpSource


def _heard(sound, others=None):
    return sounds.Heard(MadeUpSource(), sound, others)


def test_own_sound_is_untouched_and_carries_its_place():
    example = _heard("own")[2]
    np.testing.assert_array_equal(example["waveform"], MadeUpSource()[2]["waveform"])
    assert example["index"] == 2 and example["index"].dtype == np.int32


def test_noise_is_white_in_the_full_range_and_the_same_every_time():
    waveform = _heard("noise")[1]["waveform"]
    assert (
        waveform.dtype == np.float32 and -1 <= waveform.min() < -0.99 < 0.99 < waveform.max() <= 1
    )
    np.testing.assert_array_equal(waveform, _heard("noise")[1]["waveform"])
    assert (waveform != _heard("noise")[2]["waveform"]).any()


def test_shift_delays_by_a_second_within_the_clip():
    own, late = _heard("own")[3]["waveform"], _heard("shift")[3]["waveform"]  # a clip of 2 seconds
    np.testing.assert_array_equal(late[16_000:32_000], own[:16_000])
    np.testing.assert_array_equal(late[:16_000], own[16_000:32_000])
    np.testing.assert_array_equal(late[32_000:], own[32_000:])


def test_offscreen_is_the_chosen_clip_s_sound():
    others = [1, 2, 3, 4, 0]
    waveform = _heard("offscreen", others)[1]["waveform"]
    np.testing.assert_array_equal(waveform, MadeUpSource()[2]["waveform"])


def test_offscreen_sounds_are_of_nothing_visible():
    visible = [frozenset("ab"), frozenset("b"), frozenset("c")] * 4
    chosen = sounds.choose_offscreen(visible, visible)
    assert all(not visible[other] & visible[clip] for clip, other in enumerate(chosen))
    assert chosen == sounds.choose_offscreen(visible, visible)


def test_silent_clips_are_no_offscreen_sound():
    visible = [frozenset("a"), frozenset("b"), frozenset("c")]
    sounding = [frozenset("a"), frozenset(), frozenset("c")]
    assert 1 not in sounds.choose_offscreen(visible, sounding)


@pytest.mark.parametrize("known", [frozenset(), frozenset("a")])
def test_offscreen_without_any_other_class_is_refused(known):
    with pytest.raises(errors.BadValueError, match="clip 0 has no other with a sound"):
        sounds.choose_offscreen([known] * CLIPS, [known] * CLIPS)


def test_unknown_sound_is_refused():
    with pytest.raises(errors.UnknownNameError, match="unknown sound 'echo'; known: mute, noise"):
        _heard("echo")
