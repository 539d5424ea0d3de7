"""Writing films: pictures, times and sound that come back, and files that are never half there."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import video
from avs_jax.media.video_writer import OverlayWriter
from tests.media import film, timed


def rewrite(source, target, change=lambda rgb: rgb):
    """Writes `source` anew as `target`; gives the writer."""
    info = video.probe(source)
    with OverlayWriter(target, info, crf=1) as writer:
        for frame in video.read_frames(info):
            writer.write(frame, change(frame.rgb()))
    return writer


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def decoded(path):
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)[0]


def find(part, whole):
    """Where `part` occurs in `whole`, bit for bit; None if it does not."""
    for begin in np.flatnonzero(whole == part[0]):
        if np.array_equal(whole[begin : begin + len(part)], part):
            return begin


def sound(path):
    return np.concatenate(list(video.read_sound(video.probe(path))))


def frames(path):
    return list(video.read_frames(video.probe(path)))


@pytest.mark.parametrize(
    ("source", "codec", "sound_codec"),
    [
        ("a.mp4", "libx264", "aac"),
        ("a.webm", "libvpx-vp9", "libopus"),
        ("a.mkv", "libx264", "flac"),
        ("a.avi", "mpeg4", "mp3"),
        ("a.ts", "libx264", "aac"),
    ],
)
@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_sound_is_copied_bit_for_bit(tmp_path, source, codec, sound_codec, target):
    path = film.write_film(tmp_path / source, codec=codec, sound_codec=sound_codec, rate=48_000)
    assert rewrite(path, tmp_path / target).sound == "copied"
    # MPEG-TS wraps every AAC packet in an ADTS header, which an mp4 leaves out.
    old, new = packets(path), packets(tmp_path / target)
    assert len(old) == len(new)
    assert all(a.endswith(b) for a, b in zip(old, new, strict=True))
    assert find(decoded(path)[20_000:80_000], decoded(tmp_path / target)) is not None


@pytest.mark.parametrize("target", ["out.mp4", "out.mov"])
def test_sound_that_the_container_does_not_take_is_encoded_as_aac(tmp_path, target):
    path = film.write_film(tmp_path / "a.mkv", sound_codec="pcm_s16le", rate=22_050)
    assert rewrite(path, tmp_path / target).sound == "re-encoded"
    before, after = sound(path), sound(tmp_path / target)
    length = min(len(before), len(after)) - 800  # AAC starts and ends softly
    assert length > 30_000
    np.testing.assert_allclose(after[800:length], before[800:length], atol=0.03)


def test_encoded_sound_of_an_odd_rate_and_many_channels_is_stereo(tmp_path):
    path = film.write_film(
        tmp_path / "a.mkv", sound_codec="pcm_s16le", rate=37_800, layout="5.1", sound=film.tone
    )
    assert rewrite(path, tmp_path / "out.mp4").sound == "re-encoded"
    info = video.probe(tmp_path / "out.mp4")
    assert (info.channels, info.sample_rate) == (2, 48_000)
    assert len(sound(tmp_path / "out.mp4")) == pytest.approx(32_000, abs=1100)


def test_film_without_sound_stays_without(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", sound=None)
    assert rewrite(path, tmp_path / "out.mp4").sound == "none"
    assert not video.probe(tmp_path / "out.mp4").has_audio


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
@pytest.mark.parametrize("source", ["a.mp4", "a.webm", "a.ts", "a.mkv"])
def test_sound_stays_in_step(tmp_path, source, target):
    path = film.write_film(
        tmp_path / source,
        sound=lambda times: film.tone(times) * ((times >= 0.5) & (times < 1.25)),
        codec="libx264" if source != "a.webm" else "libvpx-vp9",
        sound_codec="aac" if source != "a.webm" else "libopus",
        rate=48_000,
    )
    rewrite(path, tmp_path / target)
    loud = np.flatnonzero(np.abs(sound(tmp_path / target)) > 0.1) / 16_000
    np.testing.assert_allclose((loud[0], loud[-1]), (0.5, 1.25), atol=0.008)


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
@pytest.mark.parametrize("sound_codec", ["aac", "pcm_s16le"])
def test_late_sound_stays_late(tmp_path, target, sound_codec):
    path = film.write_film(
        tmp_path / "a.mkv", seconds=3, sound_start=1.2, sound_seconds=1, sound_codec=sound_codec
    )
    rewrite(path, tmp_path / target)
    loud = np.flatnonzero(np.abs(sound(tmp_path / target)) > 0.2) / 16_000
    np.testing.assert_allclose((loud[0], loud[-1]), (1.2, 2.2), atol=0.03)


def test_sound_before_the_first_picture_stays(tmp_path):
    path = film.write_film(
        tmp_path / "a.mkv", stamps=[1.5, 2.0, 2.5], sound_seconds=3, sound_codec="flac"
    )
    rewrite(path, tmp_path / "out.mkv")
    assert packets(path) == packets(tmp_path / "out.mkv")
    assert video.probe(tmp_path / "out.mkv").start == pytest.approx(1.5)


def test_sound_longer_than_the_pictures_stays(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=1, sound_seconds=14)
    rewrite(path, tmp_path / "out.mp4")
    assert packets(path) == packets(tmp_path / "out.mp4")


@pytest.mark.parametrize("sound_codec", ["pcm_s16le", "mp2"])
@pytest.mark.parametrize("lost", [0.05, 1.5])
def test_silence_fills_gaps_of_sound_that_is_encoded(tmp_path, sound_codec, lost):
    path = timed.write(tmp_path / "a.mkv", 6, sound_codec=sound_codec)
    path = timed.lose_sound(path, tmp_path / "gap.mkv", 2, 2 + lost)
    assert rewrite(path, tmp_path / "out.mp4").sound == "re-encoded"
    assert abs(timed.worst(*timed.read_back(tmp_path / "out.mp4"))) < 0.01
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert float(container.streams.audio[0].duration / 48_000) == pytest.approx(6, abs=0.03)
    middle = sound(tmp_path / "out.mp4")[32_800 : 32_000 + round((lost - 0.05) * 16_000)]
    assert np.abs(middle).max(initial=0) < 0.01


@pytest.mark.parametrize("suffix", ["flv", "ts"])
def test_recordings_that_were_joined_stay_in_step(tmp_path, suffix):
    rate = 44_100 if suffix == "flv" else 48_000
    parts = [tmp_path / f"{begin}.{suffix}" for begin in (0, 4)]
    for begin, part in zip((0, 4), parts, strict=True):
        timed.write(part, 4, begin, rate=rate)
    path = timed.join(tmp_path / f"joined.{suffix}", parts)
    assert rewrite(path, tmp_path / "out.mp4").sound == "copied"
    pictures, heard = timed.read_back(tmp_path / "out.mp4")
    assert np.array_equal(np.rint(10 * pictures[:, 1]), np.arange(80))
    assert heard[-1, 0] == pytest.approx(8, abs=0.15)
    assert abs(timed.worst(*timed.read_back(tmp_path / "out.mp4"))) < 0.01


@pytest.mark.parametrize("suffix", ["flv", "ts"])
def test_copied_sound_without_stamps_goes_at_its_own_pace(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    timed.write(path, 4, rate=44_100)
    if suffix == "flv":  # all of them 0
        data = timed.shift_flv(path.read_bytes(), lambda _, kind, stamp: stamp * (kind != 8))
    else:
        data = timed.shift_ts(
            path.read_bytes(), lambda _, stream, ticks: None if 0xC0 <= stream < 0xE0 else ticks
        )
    path.write_bytes(data)
    assert rewrite(path, tmp_path / "out.mp4").sound == "copied"
    assert timed.read_back(tmp_path / "out.mp4")[1][-1, 0] == pytest.approx(4, abs=0.15)
    assert abs(timed.worst(*timed.read_back(tmp_path / "out.mp4"))) < 0.03


def test_pictures_keep_their_times_when_the_rate_varies(tmp_path):
    stamps = [0, 0.1, 0.15, 0.9, 1.0, 2.5]
    rewrite(film.write_film(tmp_path / "a.mkv", stamps=stamps), tmp_path / "out.mp4")
    new = frames(tmp_path / "out.mp4")
    np.testing.assert_allclose([frame.time for frame in new], stamps, atol=1e-4)
    assert [film.grey_index(frame.rgb()) for frame in new] == list(range(6))


def test_last_picture_stays_as_long_as_it_did(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=1, fps=1, sound_seconds=1)
    rewrite(path, tmp_path / "out.mp4")
    assert video.probe(tmp_path / "out.mp4").duration == pytest.approx(1)


@pytest.mark.parametrize("colorspace", [None, 1, 5])
def test_colours_stay(tmp_path, colorspace):
    path = film.write_film(
        tmp_path / "a.mp4", picture=film.quadrants, size=(64, 64), colorspace=colorspace
    )
    rewrite(path, tmp_path / "out.mp4")
    (old, *_), (new, *_) = frames(path), frames(tmp_path / "out.mp4")
    inner = np.s_[8:24, 8:24]  # of one quadrant
    np.testing.assert_allclose(new.rgb()[inner].astype(int), old.rgb()[inner].astype(int), atol=4)
    with av.open(path) as a, av.open(str(tmp_path / "out.mp4")) as b:
        contexts = [c.streams.video[0].codec_context for c in (a, b)]
        assert contexts[0].colorspace == contexts[1].colorspace


def test_turned_film_is_written_upright(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", picture=film.quadrants, size=(64, 32), turn=90)
    rewrite(path, tmp_path / "out.mp4")
    info = video.probe(tmp_path / "out.mp4")
    assert (info.width, info.height) == (32, 64)
    (old, *_), (new, *_) = frames(path), frames(tmp_path / "out.mp4")
    assert np.abs(new.rgb().astype(int) - old.rgb()).mean() < 4


def test_pixels_that_are_not_square_stay_so(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", size=(64, 32))
    with av.open(path) as source, av.open(str(tmp_path / "wide.mkv"), "w") as output:
        old = source.streams.video[0]
        new = output.add_stream("libx264", rate=5)
        new.width, new.height, new.pix_fmt = 64, 32, "yuv420p"
        new.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for frame in source.decode(old):
            output.mux(new.encode(frame))
        output.mux(new.encode(None))
    rewrite(tmp_path / "wide.mkv", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(64, 45)


def test_odd_sizes_are_padded_to_even(tmp_path):
    path = film.write_film(tmp_path / "a.mkv", size=(37, 23), seconds=1)
    rewrite(path, tmp_path / "out.mp4")
    info = video.probe(tmp_path / "out.mp4")
    assert (info.width, info.height) == (38, 24)


def test_folder_of_the_output_is_made(tmp_path):
    path = film.write_film(tmp_path / "a.mp4")
    rewrite(path, tmp_path / "new" / "folder" / "out.mp4")
    assert os.listdir(tmp_path / "new" / "folder") == ["out.mp4"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failed_run_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = film.write_film(tmp_path / "a.mp4", seconds=4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.mp4").write_text("the old one")
    info = video.probe(path)
    with pytest.raises(failure), OverlayWriter(tmp_path / "out" / "out.mp4", info) as writer:
        for number, frame in enumerate(video.read_frames(info)):
            if number == 10:
                raise failure
            writer.write(frame, frame.rgb())
    assert os.listdir(tmp_path / "out") == ["out.mp4"]
    assert (tmp_path / "out" / "out.mp4").read_text() == "the old one"


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = film.write_film(tmp_path / "a.mp4")
    (tmp_path / "out.mp4").write_text("the old one")
    info = video.probe(path)
    with OverlayWriter(tmp_path / "out.mp4", info) as writer:
        for frame in video.read_frames(info):
            writer.write(frame, frame.rgb())
            assert (tmp_path / "out.mp4").read_text() == "the old one"
    assert video.probe(tmp_path / "out.mp4").width == 48


def test_input_is_never_overwritten(tmp_path):
    path = film.write_film(tmp_path / "a.mp4")
    (tmp_path / "link.mp4").symlink_to(path)
    info = video.probe(path)
    for target in (path, tmp_path / "link.mp4"):
        with pytest.raises(errors.BadValueError, match="is the input video"):
            OverlayWriter(target, info).__enter__()


def test_folder_cannot_be_the_output(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.mp4"))
    with pytest.raises(errors.BadValueError, match="is a folder"):
        OverlayWriter(tmp_path, info).__enter__()


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    path = film.write_film(tmp_path / "a.mp4")
    with pytest.raises(errors.BadValueError, match=r"cannot write to the folder .*a\.mp4"):
        OverlayWriter(os.path.join(path, "out.mp4"), video.probe(path)).__enter__()


def test_folder_without_permission_is_an_error(tmp_path, monkeypatch):
    info = video.probe(film.write_film(tmp_path / "a.mp4"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "makedirs", refuse)  # root may write anywhere: no real folder refuses
    with pytest.raises(errors.BadValueError, match="Permission denied; choose another output"):
        OverlayWriter(tmp_path / "out.mp4", info).__enter__()


@pytest.mark.parametrize("name", ["out.webm", "out.nonsense", "out", "out.avi"])
def test_name_that_is_no_container_for_h264_is_an_error(tmp_path, name):
    info = video.probe(film.write_film(tmp_path / "a.mp4"))
    with pytest.raises(errors.BadValueError, match=r"ending in \.mp4, \.mov or \.mkv"):
        OverlayWriter(tmp_path / name, info).__enter__()
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_is_an_error_in_one_line(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.mp4", picture=film.quadrants, seconds=4))
    writer = OverlayWriter(tmp_path / "out.mp4", info)
    (tmp_path / "full.mp4").symlink_to("/dev/full")
    writer._partial = str(tmp_path / "full.mp4")
    with pytest.raises(errors.BadValueError, match=r"cannot write .*No space left"), writer:
        for frame in video.read_frames(info):
            writer.write(frame, frame.rgb())


def test_tags_that_are_not_utf8_are_no_obstacle(tmp_path):
    source = film.write_film(tmp_path / "a.mkv", title="Premiere")
    with open(source, "r+b") as file:  # as written before UTF-8: Première in Latin-1
        content = file.read()
        assert content.count(b"Premiere") == 3  # of the film and of both its tracks
        file.seek(0)
        file.write(content.replace(b"Premiere", b"Premi\xe8re"))
    rewrite(source, tmp_path / "out.mkv")
    assert video.probe(tmp_path / "out.mkv").has_audio
