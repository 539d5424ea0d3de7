"""Clips from arrays: every frame once, a second apart, each with its own second of sound."""

import numpy as np
import pytest

from avs_jax.prediction import arrays

SETTINGS = {"seconds": 3, "frame_offset": 0.5, "size": 4}


def cut(count, rate, seconds=None):
    """Frames and samples that tell their own number (of 250) and second."""
    frames = np.zeros((count, 6, 5, 3), np.uint8) + np.arange(count, dtype=np.uint8).reshape(
        -1, 1, 1, 1
    )
    length = count / rate if seconds is None else seconds
    sound = np.arange(round(length * 16_000), dtype=np.float32) / 16_000
    times = arrays.spread_frames(count, length, rate)
    return list(arrays.cut_clips(frames, times, sound, **SETTINGS)), times


@pytest.mark.parametrize("rate", [0.4, 1, 1.4, 4, 23.976])
@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_every_frame_comes_once(count, rate):
    clips, times = cut(count, rate)
    chosen = np.concatenate([found for _, found in clips])
    assert sorted(chosen[chosen >= 0]) == list(range(count))
    for clip, found in clips:
        assert clip.frames.shape == (3, 4, 4, 3)
        assert clip.waveform.shape == (48_000,)
        new = found >= 0
        np.testing.assert_array_equal(clip.frames[new][:, 0, 0, 0], found[new])
        np.testing.assert_array_equal(clip.times[new], times[found[new]])
        assert np.isnan(clip.times[~new]).all()


@pytest.mark.parametrize("rate", [1, 4, 25])
def test_frames_of_a_clip_are_a_second_apart(rate):
    clips, _ = cut(8 * rate, rate)
    for clip, _ in clips:
        assert clip.frame_mask.all()
        assert np.diff(clip.frames[:, 0, 0, 0].astype(int)).tolist() == [rate, rate]


@pytest.mark.parametrize("rate", [0.4, 1, 1.4, 25])
def test_each_frame_hears_the_second_around_it(rate):
    clips, times = cut(40, rate)
    for clip, found in clips:
        for i in np.flatnonzero(found >= 0):
            second = clip.waveform.reshape(3, 16_000)[i]
            begin = np.clip(times[found[i]] - 0.5, 0, 40 / rate - 1)
            np.testing.assert_allclose(second[[0, -1]], [begin, begin + 1], atol=2e-4)


def test_what_is_left_at_the_end_comes_in_a_clip_that_reaches_back():
    (first, _), (last, found) = cut(4, 1)[0]
    assert first.frames[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert last.frames[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert found.tolist() == [-1, -1, 3]


def test_fewer_frames_than_a_clip_are_padded_with_masked_ones():
    ((clip, found),) = cut(2, 1)[0]
    assert clip.frame_mask.tolist() == [True, True, False]
    assert found.tolist() == [0, 1, -1]
    assert not clip.frames[2].any()


def test_after_the_sound_there_is_silence():
    clips, _ = cut(3, 1, seconds=1.25)
    sound = clips[0][0].waveform.reshape(3, 16_000)
    assert sound[1, 3_999] > 1.2
    assert not sound[1, 4_000:].any()
    assert not sound[2].any()
