"""Films at their pace, pipes and UDP on this machine: what comes, when, and after it was lost."""

import os
import socket
import threading
import time

import av
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import live_source
from tests.media import film, timed


class Received:
    """Keeps what a source hands on; may stop it after some pictures."""

    def __init__(self, most=10**9):
        self.stop, self.most = threading.Event(), most
        self.pictures, self.sound, self.told, self.sound_until = [], [], [], []

    def show(self, picture):
        self.pictures.append((picture.time, timed.number(picture.rgb()), picture.due))
        self.sound_until.append(self.sound[-1][0] if self.sound else 0.0)
        if len(self.pictures) >= self.most:
            self.stop.set()

    def hear(self, moment, samples):
        self.sound.append((moment + len(samples) / 16_000, moment, samples))

    def tell(self, text):
        self.told.append(text)

    def run(self, source, seconds=15):
        """In a thread, as ever: what hangs fails, and holds nothing up."""
        failures = []

        def read():
            try:
                source.run(self, self.stop)
            except Exception as error:
                failures.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(seconds)
        assert not reader.is_alive(), f"{len(self.pictures)} pictures, then nothing; {self.told}"
        if failures:
            raise failures[0]
        return self


def test_a_film_comes_with_the_sound_of_its_pictures(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=2)
    got = Received().run(live_source.open_source(path, speed=20))
    times = np.array([moment for moment, _, _ in got.pictures])
    np.testing.assert_allclose(times, np.arange(20) / 10, atol=0.01)
    assert [number for _, number, _ in got.pictures] == list(range(20))
    # Sound is there before the picture is, but for the resampler's last samples.
    assert (np.array(got.sound_until)[:-2] >= times[:-2] - 0.05).all()
    whole = np.concatenate([samples for _, _, samples in got.sound])
    for moment, recorded in timed.listen(whole, 16_000):
        assert abs(moment - recorded) < 0.03


def test_a_film_is_shown_at_its_pace(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=1)
    begun = time.monotonic()
    got = Received().run(live_source.open_source(path, speed=2))
    assert time.monotonic() - begun >= 0.45
    dues = np.diff([due for _, _, due in got.pictures])
    assert (dues > 0.04).all()


def test_a_loop_goes_on_in_time(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=1)
    got = Received(most=25).run(live_source.open_source(path, speed=20, loop=True))
    times = [moment for moment, _, _ in got.pictures]
    assert (np.diff(times) > 0.05).all() and times[-1] > 2.3
    assert [number for _, number, _ in got.pictures][10:13] == [0, 1, 2]


def test_a_film_whose_sound_ends_early_goes_on(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=6, fps=10, sound_seconds=1)
    got = Received().run(live_source.open_source(path, speed=50))
    assert len(got.pictures) == 60


def test_a_film_without_sound_needs_to_be_allowed(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=1, sound=None)
    with pytest.raises(errors.BadValueError, match="no audio track"):
        live_source.open_source(path)
    got = Received().run(live_source.open_source(path, speed=20, allow_silent=True))
    assert len(got.pictures) == 5 and not got.sound


@pytest.mark.parametrize("name", ["missing.mp4", "-x", "C"])
def test_a_name_that_means_nothing_is_an_error(name):
    with pytest.raises(errors.NotFoundError, match="no such film"):
        live_source.open_source(name)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_a_speed_that_is_not_positive_is_an_error(speed):
    with pytest.raises(errors.BadValueError, match="positive"):
        live_source.open_source("camera", speed=speed)


@pytest.mark.parametrize("name", ["/dev/video97", "tcp://127.0.0.1:9", "nonsense://x"])
def test_a_stream_that_is_not_there_is_an_error_of_one_line(name):
    with pytest.raises(errors.InputError, match="cannot read the live source") as raised:
        Received().run(live_source.open_source(name))
    assert "\n" not in str(raised.value)


def test_a_pipe_that_is_opened_again_goes_on(tmp_path):
    timed.write(tmp_path / "a.ts", seconds=1.5)
    data = (tmp_path / "a.ts").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = Received(most=20)

    def write():
        pipe.write_bytes(data)
        while not got.told:
            time.sleep(0.01)
        pipe.write_bytes(data)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    got.run(live_source.open_source(str(pipe)))
    writer.join(5)
    times = [moment for moment, _, _ in got.pictures]
    assert (np.diff(times) > 0).all()
    numbers = [number for _, number, _ in got.pictures]
    assert numbers[:15] == list(range(15)) and numbers[15:18] == [0, 1, 2]
    assert any("trying again" in text for text in got.told)
    assert any("back" in text for text in got.told)


def test_a_size_that_changes_in_the_stream_is_told_and_goes_on(tmp_path):
    timed.write(tmp_path / "a.ts", seconds=1)
    timed.write(tmp_path / "b.ts", seconds=1, begin=1, size=(128, 96))
    parts = [(tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    got = Received().run(live_source.open_source(str(tmp_path / "both.ts"), speed=10))
    assert max(number for _, number, _ in got.pictures) >= 18
    assert any("128 x 96" in text for text in got.told)


def test_udp_on_this_machine_is_read_as_it_comes():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    over = threading.Event()

    def send():
        options = {"preset": "ultrafast", "tune": "zerolatency"}
        with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as output:
            video = output.add_stream("libx264", rate=25, options=options)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            video.codec_context.gop_size = 5
            index = 0
            while not over.is_set():
                picture = timed.numbered(index % 4096, (96, 64))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = index
                output.mux(video.encode(frame))
                index += 1
                time.sleep(0.01)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    got = Received(most=8)
    source = live_source.open_source(f"udp://127.0.0.1:{port}", allow_silent=True)
    try:
        got.run(source)
    finally:
        over.set()
        sender.join(5)
    numbers = [number for _, number, _ in got.pictures]
    assert len(numbers) == 8 and (np.diff(numbers) > 0).all()


def test_a_microphone_beside_the_pictures_is_heard_as_it_comes():
    got = Received(most=10)
    pictures = "lavfi:testsrc2=size=96x64:rate=10"
    got.run(live_source.open_source(pictures, sound="lavfi:sine=frequency=440:sample_rate=48000"))
    times = [moment for moment, _, _ in got.pictures]
    np.testing.assert_allclose(np.diff(times), 0.1, atol=0.01)
    until = max(end for end, _, _ in got.sound)
    assert 0.2 < until < times[-1] + 2.0  # not ahead of its time, though it could be read at once
    samples = np.concatenate([samples for _, _, samples in got.sound])[:8000]
    assert np.abs(np.fft.rfft(samples)).argmax() == 220  # bins of 2 Hz


def test_pictures_without_sound_ask_for_a_microphone():
    with pytest.raises(errors.BadValueError, match="--live_sound FORMAT:NAME"):
        Received().run(live_source.open_source("lavfi:testsrc2=size=96x64:rate=10"))


def test_a_microphone_that_is_not_there_is_told_and_is_silence():
    got = Received(most=5)
    source = live_source.open_source("lavfi:testsrc2=size=96x64:rate=10", sound="alsa:no_such")
    got.run(source)
    assert len(got.pictures) == 5
    assert any("heard as silence" in text for text in got.told)


def test_a_film_brings_its_own_sound(tmp_path):
    path = timed.write(tmp_path / "a.mp4", seconds=1)
    with pytest.raises(errors.BadValueError, match="bring their own"):
        live_source.open_source(path, sound="alsa:default")
