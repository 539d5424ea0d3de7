"""A stream as it comes: what each mask heard and saw, what is dropped, and what goes on."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import av
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import live_source
from avs_jax.media.live_reading import Picture
from avs_jax.prediction import live
from tests.media import timed

RATE = 16_000


class Recorder:
    """Marks nothing, slowly or not; keeps which picture it saw, and its sound."""

    size, is_small = 96, True

    def __init__(self, delay=0.0, num_pictures=1, value=-5.0, keeps=True):
        self.delay, self.num_pictures, self.value = delay, num_pictures, value
        self.keeps = keeps
        self.window = 15_600 if num_pictures == 1 else num_pictures * RATE
        self.seen, self.windows = [], []
        self.lock = threading.Lock()

    def hear(self, sound):
        assert sound.shape == (self.window,)
        if self.keeps:
            self.windows.append(sound)
        return sound

    def mark(self, pictures, exists, heard):
        time.sleep(self.delay)
        with self.lock:
            if self.keeps:
                self.seen.append((pictures, exists, heard))
        return np.full((1, 1, self.size, self.size, 1), self.value, np.float32)

    def numbers(self):
        return [timed.number(pictures[-1]) for pictures, _, _ in self.seen]


class Gathering:
    """A sink that keeps when what was written."""

    def __init__(self):
        self.times, self.sizes = [], []

    def write(self, moment, rgb):
        self.times.append(moment)
        self.sizes.append(rgb.shape[:2])

    def close(self):
        pass


class Played:
    """A source that does what a function says."""

    name = "played"

    def __init__(self, play):
        self.run = play


def flat(moment, size=(32, 48)):
    return Picture(moment, time.monotonic(), lambda: np.full((*size, 3), 90, np.uint8))


def run(source, network=None, **options):
    """(sink, summary, JSON objects, lines)"""
    sink, log, lines = Gathering(), io.StringIO(), []
    network = network or Recorder()
    summary = live.run_live(source, network, sink, log=log, say=lines.append, **options)
    return sink, summary, [json.loads(line) for line in log.getvalue().splitlines()], lines


# --- what a mask has heard and seen -----------------------------------------------------------


def test_each_mask_has_heard_the_second_before_its_picture_and_nothing_after(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=4)
    network = Recorder()
    run(live_source.open_source(path, speed=2), network)
    checked = 0
    for pictures, _, sound in network.seen:
        shown = timed.number(pictures[-1]) / timed.FPS
        last, first = (timed.heard(part, RATE) for part in (sound[-1280:], sound[:1280]))
        if shown < 1.2 or last is None or first is None:  # the window reaches before the beginning
            continue
        checked += 1
        # The pieces are 0.08 s long, and windows end at full tenths of a second.
        assert shown - 0.3 < last + 0.04 < shown + 0.02
        assert shown - 1.2 < first - 0.04 < shown - 0.93
    assert checked


def test_sound_is_listened_to_once_in_a_tenth_of_a_second():
    def play(receiver, stop):
        receiver.hear(0.0, np.ones(2 * RATE, np.float32))
        for i in range(100):
            receiver.show(flat(1 + i * 0.005))
            time.sleep(0.002)

    network = Recorder()
    run(Played(play), network)
    # 5 windows of 100 pictures, but for two workers that ask in turns where one begins.
    assert 1 <= len(network.windows) <= 15


def test_a_model_of_clips_gets_the_seconds_before_and_masks_what_never_was():
    def play(receiver, stop):
        receiver.hear(0.0, np.ones(6 * RATE, np.float32))
        for i in range(31):
            rgb = timed.numbered(i, (96, 96))
            receiver.show(Picture(i / 10, time.monotonic(), lambda rgb=rgb: rgb))
            time.sleep(0.01)

    network = Recorder(num_pictures=3)
    run(Played(play), network)
    for pictures, exists, _ in network.seen:
        newest = timed.number(pictures[-1])
        wanted = [newest / 10 - 2, newest / 10 - 1]
        assert exists.tolist() == [wanted[0] >= -0.5, wanted[1] >= -0.5, True]
        for picture, is_there, moment in zip(pictures, exists, wanted, strict=False):
            assert not is_there or abs(timed.number(picture) / 10 - moment) <= 0.5 + 1e-6


def test_masks_are_written_in_the_order_of_time_though_two_are_made_at_once(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=3)
    network = Recorder(delay=0.03)
    sink, summary, _, _ = run(live_source.open_source(path, speed=3), network)
    assert len(sink.times) == summary.frames > 1
    assert (np.diff(sink.times) > 0).all()


def test_pictures_are_dropped_where_the_model_is_slow(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=3)
    network = Recorder(delay=0.4)
    _, summary, _, _ = run(live_source.open_source(path, speed=2), network)
    assert summary.dropped > 0
    assert summary.frames + summary.dropped == 30
    assert 0 < summary.dropped_share < 1
    assert max(network.numbers()) == 29  # the last one is marked


# --- figures ----------------------------------------------------------------------------------


def test_every_second_is_told_in_a_line_and_as_json(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=3)
    _, summary, objects, lines = run(live_source.open_source(path))
    *seconds, last = objects
    assert [o["second"] for o in seconds] == sorted({o["second"] for o in seconds})
    assert sum(o["frames"] for o in seconds) <= last["frames"] == summary.frames
    assert last["summary"] and last["frames"] + last["dropped"] == 30
    told = next(o for o in seconds if o["frames"])
    assert 0 <= told["latency_ms"]["median"] <= told["latency_ms"]["p95"]
    assert 0 <= told["dropped_share"] <= 1 and (told["height"], told["width"]) == (64, 96)
    assert any("latency" in line and "dropped" in line for line in lines)
    assert "masks in" in str(summary)


# --- what goes on -----------------------------------------------------------------------------


def test_a_stall_is_told_and_what_comes_after_it_is_marked():
    def play(receiver, stop):
        receiver.hear(0.0, np.ones(RATE, np.float32))
        receiver.show(flat(0.5))
        time.sleep(2.3)
        receiver.show(flat(2.9))
        time.sleep(0.3)

    sink, _, objects, lines = run(Played(play))
    assert sink.times == [0.5, 2.9]
    assert any("no picture for" in line for line in lines)
    assert any(o.get("stalled", 0) > 1 and o["latency_ms"] is None for o in objects)


def test_a_size_that_changes_goes_on():
    def play(receiver, stop):
        for moment, size in ((0.1, (32, 48)), (0.2, (48, 32)), (0.3, (20, 20))):
            receiver.show(flat(moment, size))
            time.sleep(0.2)

    sink, _, _, _ = run(Played(play))
    assert sink.sizes[-1] == (20, 20)


def test_sound_that_is_lost_is_silence_and_heard_again_when_it_is_back():
    network = Recorder()

    def play(receiver, stop):
        for moment in (1.0, 3.0, 5.0):
            if moment != 3.0:
                receiver.hear(moment - 1, np.ones(RATE, np.float32))
            receiver.show(flat(moment))
            while len(network.seen) < (moment + 1) // 2:
                time.sleep(0.01)

    run(Played(play), network)
    assert [float(sound.mean().round(3)) for _, _, sound in network.seen] == [1.0, 0.0, 1.0]


def test_a_source_that_cannot_be_read_at_all_is_an_error():
    def play(receiver, stop):
        raise errors.BadValueError("no such stream.")

    with pytest.raises(errors.BadValueError, match="no such stream"):
        run(Played(play))


def test_logits_that_are_no_numbers_are_an_error():
    def play(receiver, stop):
        receiver.show(flat(0.5))

    with pytest.raises(errors.BadValueError, match=r"NaN or infinite at 0\.500 s"):
        run(Played(play), Recorder(value=np.nan))


def test_memory_stays_flat_over_a_long_stream():
    held = []

    def play(receiver, stop):
        for second in range(300):
            receiver.hear(second, np.full(RATE, 0.1, np.float32))
            for i in range(5):
                receiver.show(flat(second + i / 5, (48, 64)))
            if second in (100, 299):
                time.sleep(0.2)
                held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        _, summary, _, _ = run(Played(play), Recorder(num_pictures=3, keeps=False))
    finally:
        tracemalloc.stop()
    assert summary.frames + summary.dropped == 1500
    assert abs(held[1] - held[0]) < 1_000_000


# --- the end ----------------------------------------------------------------------------------

_CHILD = """
import sys
from avs_jax.media import live_sink, live_source
from avs_jax.prediction import live
from tests.prediction.test_live import Recorder
film, output = sys.argv[1:]
source = live_source.open_source(film, loop=True)
with live_sink.open_sink(output) as sink:
    write = sink.write
    def tell(moment, rgb):
        write(moment, rgb)
        if moment > 0.3:
            print("running", flush=True)
    sink.write = tell
    print(live.run_live(source, Recorder(), sink, output=output, say=lambda line: None))
live.leave_hanging_threads()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_a_film_that_plays_and_a_summary(tmp_path, number):
    path = timed.write(tmp_path / "a.mp4", seconds=2)
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-c", _CHILD, path, out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"running\n"
        child.send_signal(number)
        output, told = child.communicate(timeout=30)
    assert child.returncode == 0 and told == b""
    assert b"masks in" in output and b"out.mp4" in output
    with av.open(str(out)) as film:
        assert sum(1 for _ in film.decode(video=0)) >= 2
