"""Films that grow, and pictures for a browser."""

import urllib.error
import urllib.request

import av
import cv2
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import live_sink
from avs_jax.media.live_sink import FilmSink, MjpegSink


def picture(value, size=(32, 48)):
    return np.full((*size, 3), value, np.uint8)


def decode(path):
    with av.open(f"file:{path}") as film:
        frames = list(film.decode(video=0))
    return [frame.time for frame in frames], [f.to_ndarray(format="rgb24") for f in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_a_film_keeps_the_times_of_its_pictures(tmp_path, name):
    with live_sink.open_sink(str(tmp_path / name)) as sink:
        for moment in (7.0, 7.1, 7.5, 9.0):
            sink.write(moment, picture(90))
    times, _ = decode(tmp_path / name)
    np.testing.assert_allclose(times, [0.0, 0.1, 0.5, 2.0], atol=0.002)


def test_pictures_of_another_size_are_fitted_in(tmp_path):
    with live_sink.open_sink(str(tmp_path / "a.mp4")) as sink:
        sink.write(0.0, picture(200, (31, 47)))
        sink.write(0.1, picture(200, (62, 47)))
    _, frames = decode(tmp_path / "a.mp4")
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 2
    assert frames[1][16, 24].mean() > 180 and frames[1][16, 2].mean() < 40


def test_a_process_that_is_killed_leaves_a_film_that_plays(tmp_path):
    sink = FilmSink(str(tmp_path / "a.mp4"))
    for i in range(40):
        sink.write(i / 10, picture(i))
    (hidden,) = tmp_path.iterdir()
    times, _ = decode(hidden)
    assert times[-1] >= 2.5
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_older_film_stays_until_the_new_one_is_there(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    with live_sink.open_sink(str(tmp_path / "a.mp4")) as sink:
        sink.write(0.0, picture(9))
        assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert len(decode(tmp_path / "a.mp4")[0]) == 1


def test_a_run_without_a_picture_writes_nothing(tmp_path):
    with live_sink.open_sink(str(tmp_path / "a.mp4")):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a.png", "a", "http://0.0.0.0:0", "https://127.0.0.1:1", "http://x:99999"]
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.BadValueError, match="wanted"), live_sink.open_sink(name):
        pass


def test_the_source_is_not_written_over(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"film")
    with pytest.raises(errors.BadValueError, match="is the source"):
        with live_sink.open_sink(str(path), str(path)):
            pass


# --- a browser --------------------------------------------------------------------------------


@pytest.fixture
def server():
    sink = MjpegSink("http://127.0.0.1:0")
    yield sink
    sink.close()


def get(address, **headers):
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20)


def test_the_newest_picture_is_a_jpeg(server):
    server.write(0.0, picture(10))
    server.write(0.1, picture((250, 10, 10)))
    with get(f"{server.address}/frame.jpg") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        found = cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_COLOR)
    assert found.shape == (32, 48, 3)
    assert found[..., 2].mean() > 200 and found[..., 0].mean() < 50  # BGR


def test_the_stream_sends_one_jpeg_after_the_other(server):
    server.write(0.0, picture(10))
    with get(f"{server.address}/stream") as answer:
        assert "multipart/x-mixed-replace; boundary=picture" in answer.headers["Content-Type"]
        for level in (10, 200):
            assert answer.readline() == b"--picture\r\n"
            assert answer.readline() == b"Content-Type: image/jpeg\r\n"
            length = int(answer.readline().split(b":")[1])
            answer.readline()
            found = cv2.imdecode(np.frombuffer(answer.read(length), np.uint8), cv2.IMREAD_COLOR)
            assert abs(found.mean() - level) < 5
            answer.readline()
            server.write(0.1, picture(200))


def test_the_page_shows_the_stream(server):
    with get(server.address) as answer:
        assert b'src="/stream"' in answer.read()


def test_a_page_elsewhere_cannot_read_along(server):
    server.write(0.0, picture(10))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{server.address}/frame.jpg", Host="evil.example")


def test_a_port_that_is_taken_is_an_error(server):
    with pytest.raises(errors.BadValueError, match="cannot listen there"):
        MjpegSink(server.address)


def test_closing_ends_the_stream(server):
    server.write(0.0, picture(10))
    with get(f"{server.address}/stream") as answer:
        server.close()
        answer.read()
