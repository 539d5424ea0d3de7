"""What is heard of more than two channels, of none that can be mixed, and of what cancels out."""

import logging
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import sound, video
from tests.media import film


def read_sound(path):
    return np.concatenate(list(sound.read_sound(video.probe(path))))


def write_channels(path, codec: str, layout: str, levels, **options) -> str:
    """A film of two seconds with a tone of its own level in each channel."""
    film.write_film(path.with_suffix(".mp4"), sound=None)
    rate, count = 48_000, 96_000
    tone = film.tone(np.arange(count) / rate)[:, None] * 2
    samples = (tone * np.array(levels)).astype(np.float32)
    with av.open(str(path.with_suffix(".mp4"))) as old, av.open(str(path), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        audio = new.add_stream(codec, rate=rate)
        audio.codec_context.layout = layout
        audio.codec_context.options = options
        is_float = audio.codec_context.format.name == "flt"
        kind = "flt" if is_float else "s16"
        samples = samples if is_float else (samples * 32767).astype(np.int16)
        packets = []
        for begin in range(0, count, 960):
            block = np.ascontiguousarray(samples[begin : begin + 960]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format=kind, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            packets += audio.encode(frame)
        packets += audio.encode(None)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                packets.append(packet)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        new.mux(packets)
    return str(path)


@pytest.mark.parametrize(("channel", "share"), [(0, 0.207), (2, 0.293), (4, 0.146), (5, 0.146)])
def test_surround_channels_are_heard_as_ffmpeg_s_downmix_has_them(tmp_path, channel, share):
    """-ac 2, then the mean: 0.414 / 2 of the front, 0.293 of the centre, 0.293 / 2 of the back."""
    levels = np.zeros(6)
    levels[channel] = 0.5
    path = write_channels(tmp_path / "a.mkv", "pcm_s16le", "5.1", levels)
    assert np.abs(read_sound(path)[4000:-4000]).max() == pytest.approx(0.5 * share, rel=0.02)


@pytest.mark.parametrize(
    ("layout", "levels"), [("stereo", [0.5, -0.5]), ("5.1", [0, 0, 0, 0.5, 0, 0])]
)
def test_sound_that_is_lost_by_mixing_is_silence_with_a_warning(tmp_path, caplog, layout, levels):
    path = write_channels(tmp_path / "a.mkv", "pcm_s16le", layout, levels)
    with caplog.at_level(logging.WARNING):
        assert np.abs(read_sound(path)).max() < 1e-3
    assert caplog.text.count("its sound is lost when its channels are mixed") == 1


def test_sound_that_is_heard_or_silent_gives_no_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read_sound(write_channels(tmp_path / "a.mkv", "pcm_s16le", "stereo", [0.5, -0.3]))
        read_sound(write_channels(tmp_path / "b.mkv", "pcm_s16le", "stereo", [0, 0]))
    assert not caplog.text


@pytest.mark.parametrize("order", [1, 2])
def test_of_ambisonic_sound_the_omnidirectional_channel_is_heard(tmp_path, order):
    levels = [0.3, *np.zeros((order + 1) ** 2 - 1)]
    path = write_channels(
        tmp_path / "a.mkv", "libopus", f"ambisonic {order}", levels, mapping_family="2"
    )
    assert np.abs(read_sound(path)[4000:-4000]).max() == pytest.approx(0.3, rel=0.1)


def test_channels_that_have_no_place_are_an_error_in_one_line(tmp_path):
    path = write_channels(tmp_path / "a.mkv", "pcm_s16le", "9 channels", np.full(9, 0.1))
    info = video.probe(path)
    with pytest.raises(errors.BadValueError, match=r"cannot be mixed down \(9 channels"):
        video.require_audio(info)
    assert len(list(video.read_clips(info, seconds=2, frame_offset=0.5, allow_silent=True))) == 1


def test_decoder_that_ends_its_process_is_an_error_in_one_line(tmp_path, monkeypatch):
    path = write_channels(tmp_path / "a.mov", "pcm_s16le", "stereo", [0.1, 0.1])
    dies = [sys.executable, "-c", "import os; os.abort()"]
    monkeypatch.setattr(sound, "_CHILD", dies)  # in the place of a film that does it
    info = video.probe(path)
    with pytest.raises(errors.BadValueError, match=r"an audio track that cannot be read here"):
        video.require_audio(info)
    assert len(list(video.read_frames(info))) == 10


def test_unknown_order_of_channels_is_asked_of_another_process(tmp_path, monkeypatch):
    path = write_channels(tmp_path / "a.mov", "pcm_s16le", "stereo", [0.1, 0.1])
    monkeypatch.setattr(sound.sound_probe, "probe", None)  # not in this one
    assert video.probe(path).channels == 2


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv", "a.avi"])
def test_usual_films_need_no_other_process(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sound, "_probe_in_child", None)
    codecs = {"codec": "mpeg4", "sound_codec": "mp3"} if name == "a.avi" else {}
    assert video.probe(film.write_film(tmp_path / name, **codecs)).channels == 2


def test_a_file_without_pictures_is_read_whole(tmp_path):
    path = film.write_film(tmp_path / "a.wav", picture=None, sound_codec="pcm_s16le", seconds=1)
    samples = sound.read_sound_file(path)
    assert samples.shape == (16_000,)
    np.testing.assert_allclose(samples[::7], film.tone(np.arange(16_000) / 16_000)[::7], atol=0.02)


def test_a_file_without_sound_is_refused(tmp_path):
    with pytest.raises(errors.BadValueError, match="holds no sound"):
        sound.read_sound_file(film.write_film(tmp_path / "a.mp4", sound=None))
