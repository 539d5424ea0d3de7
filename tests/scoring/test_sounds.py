"""Other sounds for a clip."""

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.scoring import sounds
from tests.scoring.made_up import CLIPS, MadeUpSource


def _sounds(index, *names, offscreen=None):
    """The sounds of a clip, in that order."""
    example = sounds.Soundtracks(MadeUpSource(), names, offscreen)[index]
    assert "waveform" not in example
    return [example[f"waveform/{name}"] for name in names]


def test_own_sound_is_untouched_and_the_clip_carries_its_place():
    example = sounds.Soundtracks(MadeUpSource())[2]
    np.testing.assert_array_equal(example["waveform/own"], MadeUpSource()[2]["waveform"])
    assert example["index"] == 2 and example["index"].dtype == np.int32


def test_mute_is_silence():
    (waveform,) = _sounds(1, "mute")
    assert waveform.shape == (48_000,) and not waveform.any() and waveform.dtype == np.float32


def test_swap_is_the_sound_of_the_clip_half_the_split_away():
    (waveform,) = _sounds(4, "swap")
    np.testing.assert_array_equal(waveform, MadeUpSource()[1]["waveform"])


def test_swapped_sound_of_a_shorter_clip_is_repeated():
    (waveform,) = _sounds(1, "swap")  # of clip 3, which has 2 seconds
    other = MadeUpSource()[3]["waveform"]
    np.testing.assert_array_equal(waveform[:32_000], other[:32_000])
    np.testing.assert_array_equal(waveform[32_000:], other[:16_000])


def test_borrowed_sound_is_repeated_where_it_is_shorter():
    sound = np.arange(1, 9, dtype=np.float32)
    other = {"waveform": sound * (sound < 5), "frame_mask": np.arange(4) < 2}
    np.testing.assert_array_equal(sounds.borrow_sound(other, 8), [1, 2, 3, 4, 1, 2, 3, 4])
    whole = other | {"waveform": sound, "frame_mask": np.ones(4, bool)}
    np.testing.assert_array_equal(sounds.borrow_sound(whole, 8), sound)


def test_noise_is_white_in_the_full_range_and_the_same_every_time():
    (waveform,) = _sounds(1, "noise")
    assert (
        waveform.dtype == np.float32 and -1 <= waveform.min() < -0.99 < 0.99 < waveform.max() <= 1
    )
    np.testing.assert_array_equal(waveform, _sounds(1, "noise")[0])
    assert (waveform != _sounds(2, "noise")[0]).any()


def test_shift_delays_by_a_second_within_the_clip():
    own, late = _sounds(3, "own", "shift")  # a clip of 2 seconds
    np.testing.assert_array_equal(late[16_000:32_000], own[:16_000])
    np.testing.assert_array_equal(late[:16_000], own[16_000:32_000])
    np.testing.assert_array_equal(late[32_000:], own[32_000:])


def test_offscreen_is_the_chosen_clip_s_sound():
    (waveform,) = _sounds(1, "offscreen", offscreen=[1, 2, 3, 4, 0])
    np.testing.assert_array_equal(waveform, MadeUpSource()[2]["waveform"])


@pytest.mark.parametrize("num_threads", [0, 3])
def test_a_split_is_described_in_its_order(num_threads):
    clips = sounds.describe_split(MadeUpSource(), "binary", num_threads=num_threads)
    assert [clip.id for clip in clips] == [f"clip {i}" for i in range(CLIPS)]
    assert clips[1].visible == {"2", "4"} and clips[1].sounding == {"2"}


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
    with pytest.raises(sounds.NoOffscreenError, match="clip 0 has no other with a sound"):
        sounds.choose_offscreen([known] * CLIPS, [known] * CLIPS)


def test_unknown_sound_is_refused():
    with pytest.raises(errors.UnknownNameError, match="unknown sound 'echo'; known: mute, noise"):
        sounds.Soundtracks(MadeUpSource(), ("own", "echo"))
