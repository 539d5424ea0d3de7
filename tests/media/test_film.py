"""Opening and decoding films whose demuxer gives up."""

import pytest

from avs_jax import errors
from avs_jax.media import clock, film, video
from tests.media import film as films
from tests.media import timed


class GivesUp:
    """Stands in for a film of three packets whose demuxer fails: PyAV's ends at its first error."""

    def __init__(self, failures):
        self.failures = list(failures)
        self.packets = list(range(3))

    def demux(self, *streams):
        while self.packets:
            yield Packet(self.packets.pop(0))
            if self.failures:
                raise self.failures.pop(0)


class Packet(int):
    size = 1


def test_demuxer_goes_on_after_damage():
    damage = []
    error = film.av.error.InvalidDataError(1, "bad", "film")
    assert list(clock.demux(GivesUp([error]), [], damage)) == [0, 1, 2]
    assert damage == [error]


def test_demuxer_that_always_fails_ends():
    class Fails(GivesUp):
        def demux(self, *streams):
            raise film.av.error.InvalidDataError(1, "bad", "film")
            yield

    assert list(clock.demux(Fails([]), [], [])) == []


def test_stream_that_turns_up_on_the_way_does_not_end_in_a_trace():
    """PyAV's demuxer ends with IndexError when it flushes a stream that it did not know of."""
    assert list(clock.demux(GivesUp([IndexError("list index out of range")]), [])) == [0]


def test_flv_whose_header_knows_of_no_sound_gives_its_pictures(tmp_path):
    path = tmp_path / "a.flv"
    timed.write(path, 6, rate=44_100)
    data = timed.shift_flv(
        path.read_bytes(), lambda _, kind, ms: None if kind == 8 and ms < 4000 else ms
    )
    path.write_bytes(data[:4] + b"\1" + data[5:])
    assert len(list(video.read_frames(video.probe(path)))) == 60


def test_cover_picture_beside_a_film_is_passed_over(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", seconds=1)
    with film.av.open(path) as old, film.av.open(str(tmp_path / "b.mp4"), "w") as new:
        cover = new.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 960, 640, "rgb24"
        cover.disposition = film.av.stream.Disposition.attached_pic
        copies = {s.index: new.add_stream_from_template(s) for s in old.streams}
        picture = film.av.VideoFrame.from_ndarray(films.grey(1, (960, 640)), format="rgb24")
        new.mux(cover.encode(picture))
        for packet in old.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    info = video.probe(tmp_path / "b.mp4")
    assert (info.width, info.height) == (48, 32)


def test_missing_film_is_not_found(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no video"):
        film.open_film(str(tmp_path / "12:30.mp4"))
