"""The ring of a stream's sound, and the place for its newest picture."""

import numpy as np
import pytest

from avs_jax.media.live_reading import Picture
from avs_jax.prediction.live_buffers import Newest, SoundRing

RATE = 16_000


def ramp(begin, count):
    return np.arange(begin, begin + count, dtype=np.float32)


def test_a_window_is_what_was_written_however_often_the_ring_went_round():
    ring = SoundRing(0.5)
    for block in range(40):
        ring.write(block * 0.1, ramp(block * 1600, 1600))
    assert ring.end == 64_000
    np.testing.assert_array_equal(ring.window(63_000, 5000), ramp(58_000, 5000))


def test_a_gap_is_silence():
    ring = SoundRing(2)
    ring.write(0.0, np.ones(1600, np.float32))
    ring.write(0.3, np.ones(1600, np.float32))
    expected = np.repeat([1.0, 0.0, 0.0, 1.0], 1600)
    np.testing.assert_array_equal(ring.window(6400, 6400), expected)


def test_a_gap_longer_than_the_ring_leaves_nothing_of_before():
    ring = SoundRing(0.5)
    ring.write(0.0, np.ones(8000, np.float32))
    ring.write(100.0, np.ones(1600, np.float32))
    window = ring.window(ring.end, 8000)
    assert window[:6400].sum() == 0 and window[6400:].sum() == 1600


def test_a_block_longer_than_the_ring_leaves_its_end():
    ring = SoundRing(0.5)
    ring.write(0.0, ramp(0, 20_000))
    np.testing.assert_array_equal(ring.window(20_000, 8000), ramp(12_000, 8000))


def test_what_is_there_already_stays_and_stamps_that_stray_a_little_are_joined():
    ring = SoundRing(2)
    ring.write(0.0, ramp(0, 1600))
    ring.write(0.05, -np.ones(1600, np.float32))  # half of it is there
    np.testing.assert_array_equal(ring.window(1600, 1600), ramp(0, 1600))
    assert ring.end == 2400
    ring.write(0.16, ramp(0, 1600))  # 10 ms late: no gap
    assert ring.end == 4000


@pytest.mark.parametrize(("end", "length"), [(800, 1600), (4800, 1600), (100_000, 1600)])
def test_what_is_not_there_is_silence(end, length):
    ring = SoundRing(1)
    ring.write(0.0, np.ones(4000, np.float32))
    window = ring.window(end, length)
    there = max(0, min(end, 4000) - max(0, end - length))
    assert window.sum() == there and window.shape == (length,)


def test_the_newest_picture_takes_the_place_of_what_nobody_took():
    newest = Newest()
    for moment in (0.0, 0.1, 0.2):
        newest.put(Picture(moment, 0.0, lambda: np.zeros((1, 1, 3), np.uint8)))
    number, picture = newest.take()
    assert (number, picture.time, newest.dropped) == (0, 0.2, 2)
    newest.end()
    assert newest.take() is None


def test_the_last_picture_is_taken_though_the_stream_is_over():
    newest = Newest()
    newest.put(Picture(0.5, 0.0, lambda: np.zeros((1, 1, 3), np.uint8)))
    newest.end()
    assert newest.take()[1].time == 0.5
    assert newest.take() is None
