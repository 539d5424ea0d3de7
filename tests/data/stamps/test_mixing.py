"""Voices, rooms and levels."""

import numpy as np
import pytest

from avs_jax.data.stamps import mixing
from avs_jax.data.stamps.media import Excerpt
from avs_jax.data.stamps.mixing import Room, Voice


def tone(seconds, level=8000.0):
    t = np.arange(round(seconds * 16_000)) / 16_000
    return np.round(level * np.sin(2 * np.pi * 500 * t)).astype(np.int16)


@pytest.mark.parametrize("level", [300.0, 20_000.0])
def test_voice_has_the_same_loudness_however_it_was_recorded(level):
    sung = mixing.sing(Voice("x", 0, 16_000, 0, 0.0), tone(1, level))
    assert np.sqrt((sung**2).mean()) == pytest.approx(0.1, rel=0.02)
    softer = mixing.sing(Voice("x", 0, 16_000, 0, -6.0), tone(1, level))
    assert np.sqrt((softer**2).mean()) == pytest.approx(0.1 * 10**-0.3, rel=0.02)


def test_short_recording_is_heard_at_its_offset():
    sung = mixing.sing(Voice("x", 100, 4100, 7000, 0.0), tone(0.5))
    assert not sung[:7000].any()
    assert not sung[11_000:].any()
    assert np.sqrt((sung[7000:11_000] ** 2).mean()) == pytest.approx(0.1, rel=0.05)


def test_ends_do_not_click():
    sung = mixing.sing(Voice("x", 7, 15_000, 0, 0.0), tone(1))
    assert abs(sung[0]) < 0.002
    assert abs(sung[14_992]) < 0.002


def test_silent_recording_stays_silent():
    assert not mixing.sing(Voice("x", 0, 16_000, 0, 0.0), np.zeros(16_000, np.int16)).any()


def test_starts_are_where_it_is_loud():
    sound = np.concatenate([tone(2, 100.0), tone(2)])
    starts = mixing.find_starts(sound, Excerpt("x", 0, 64_000))
    assert min(starts) >= 18_000  # 15 % of the loudest second's energy
    assert max(starts) == 48_000
    assert mixing.find_starts(sound, Excerpt("x", 32_000, 40_000)) == [32_000]


def test_room_adds_quieter_echoes_of_what_was():
    room = Room.draw(np.random.default_rng(0))
    dot = np.zeros(16_000)
    dot[5000] = 1.0
    heard = room.apply(dot)
    assert heard[5000] == 1.0
    assert not heard[:5000].any()
    echoes = np.delete(heard, 5000)
    assert 0.05 < np.sqrt((echoes**2).sum()) < 0.6
    assert np.flatnonzero(echoes).max() < 5000 + 2400


def test_too_loud_is_scaled_down_not_clipped():
    loud = mixing.finish(3 * np.sin(np.arange(16_000) / 20), np.zeros(16_000), 1.0)
    quiet = mixing.finish(0.5 * np.sin(np.arange(16_000) / 20), np.zeros(16_000), 1.0)
    assert loud.dtype == np.int16
    assert loud.max() == 32767
    np.testing.assert_allclose(loud / 32768, quiet / 16384, atol=1e-4)
