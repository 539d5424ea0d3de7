"""One clock for pictures, sound and what is written, whatever the stamps of a file do."""

import logging

import av
import numpy as np
import pytest

from avs_jax.media import clock, video
from avs_jax.media.video_writer import OverlayWriter
from tests.media import timed

SIZE = 188  # bytes of an MPEG-TS packet


def rewrite(source, target):
    info = video.probe(source)
    with OverlayWriter(target, info, crf=1) as writer:
        for frame in video.read_frames(info):
            writer.write(frame, frame.rgb())
    return str(target)


def heard_ahead(path) -> float:
    """How far our own readers hear ahead of what they see."""
    info = video.probe(path)
    frames = [(frame.time, timed.number(frame.rgb()) / 10) for frame in video.read_frames(info)]
    sound = np.concatenate(list(video.read_sound(info)))
    return timed.worst(np.array(frames), timed.listen(sound, 16_000))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> bytes:
    """Eight seconds of MPEG-TS."""
    path = tmp_path_factory.mktemp("clock") / "a.ts"
    timed.write(path, 8)
    return path.read_bytes()


def check(path, tmp_path, seconds=8.0):
    """All of it is there, in step, for our readers and in what is written."""
    pictures, heard = timed.read_back(rewrite(path, tmp_path / "out.mp4"))
    assert len(pictures) >= 10 * seconds - 2
    assert pictures[-1, 0] == pytest.approx(seconds - 0.1, abs=0.1)
    assert heard[-1, 0] == pytest.approx(seconds, abs=0.2)
    assert abs(timed.worst(pictures, heard)) < 0.03
    assert abs(heard_ahead(path)) < 0.03


# Seconds that are added to the stamps of the first and of the second half. FFmpeg takes stamps of
# a minute before the first for ones that wrapped: 26.5 hours later.
JUMPS = {
    "forward": (0, 20),
    "back": (0, -3),
    "back by minutes": (200, 0),
    "to the end of MPEG's clock": (0, 2**33 / 90_000 - 4),
}


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_jump_of_the_clock_of_mpeg_is_closed(tmp_path, recording, jump, caplog):
    half = len(recording) // SIZE // 2
    path = tmp_path / "jump.ts"
    path.write_bytes(
        timed.shift_ts(recording, lambda at, _, stamp: stamp + round(90_000 * jump[at > half]))
    )
    with caplog.at_level(logging.WARNING):
        check(path, tmp_path)
    assert "its clock jumps" in caplog.text


def test_jump_back_of_other_formats_is_closed(tmp_path):
    path = tmp_path / "a.flv"
    timed.write(path, 8, rate=44_100)
    data = timed.shift_flv(path.read_bytes(), lambda at, kind, ms: ms - 3000 * (ms > 4000))
    path.write_bytes(data)
    check(path, tmp_path)


def test_pause_of_a_recording_stays(tmp_path):
    tenths = [*range(20), *range(50, 80)]
    path = timed.write(
        tmp_path / "a.mkv",
        8,
        stamps=[tenth / 10 for tenth in tenths],
        picture=lambda index, size: timed.numbered(tenths[index], size),
    )
    path = timed.lose_sound(path, tmp_path / "pause.mkv", 2, 5)
    times = [frame.time for frame in video.read_frames(video.probe(path))]
    np.testing.assert_allclose(times, np.array(tenths) / 10, atol=1e-3)
    assert abs(heard_ahead(path)) < 0.03


@pytest.mark.parametrize("overlap", [1, 20, 60])
def test_segments_that_overlap_are_joined(tmp_path, recording, overlap):
    half = len(recording) // SIZE // 2 * SIZE
    path = tmp_path / "joined.ts"
    path.write_bytes(recording[:half] + recording[half - overlap * SIZE :])
    check(path, tmp_path)


@pytest.mark.parametrize("wrong", [7.0, -2.5])
def test_one_wrong_stamp_is_passed_over(tmp_path, wrong):
    path = tmp_path / "a.flv"
    timed.write(path, 8, rate=44_100)
    data = timed.shift_flv(
        path.read_bytes(), lambda at, _, ms: ms + round(1000 * wrong) * (at in (200, 300))
    )
    path.write_bytes(data)
    check(path, tmp_path)


@pytest.mark.parametrize("stream", [0xC0, 0xE0], ids=["sound", "picture"])
def test_wrong_stamp_of_a_first_packet_is_passed_over(tmp_path, recording, stream):
    seen = []

    def change(_, kind, ticks):
        seen.append(kind)
        return ticks + 2 * 90_000 * (kind == stream and seen.count(kind) <= 1)

    path = tmp_path / "a.ts"
    path.write_bytes(timed.shift_ts(recording, change))
    check(path, tmp_path)


def test_stamps_that_are_right_stay_to_the_tick(tmp_path):
    path = timed.write(tmp_path / "a.mp4", 2)

    def stamps(packets):
        return [(p.stream.type, p.pts, p.dts) for p in packets if p.size]

    with av.open(path) as container:
        before = stamps(container.demux())
    with av.open(path) as container:
        assert stamps(clock.read_packets(container, list(container.streams))) == before
