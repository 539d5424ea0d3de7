"""Reading films: what is found out, which frames and samples come, in what memory."""

import itertools
import tracemalloc
import unittest.mock
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax import errors
from avs_jax.media import audio, video
from tests.media import film


def read_sound(path):
    return np.concatenate([*video.read_sound(video.probe(path)), np.zeros(0, np.float32)])


def read_clips(path, seconds=2, frame_offset=0.5, **options):
    return list(
        video.read_clips(video.probe(path), seconds=seconds, frame_offset=frame_offset, **options)
    )


# --- probe ------------------------------------------------------------------------------------


def test_probe_tells_size_pace_length_and_sound(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.mp4", seconds=2, fps=25, size=(64, 36)))
    assert (info.width, info.height, info.fps) == (64, 36, 25)
    assert info.duration == pytest.approx(2)
    assert (info.has_audio, info.sample_rate, info.channels) == (True, 44_100, 2)


@pytest.mark.parametrize(
    ("name", "codec", "sound_codec", "rate"),
    [
        ("a.mp4", "libx264", "aac", 44_100),
        ("a.webm", "libvpx-vp9", "libopus", 48_000),
        ("a.mkv", "libx264", "flac", 22_050),
        ("a.mov", "libx264", "pcm_s16le", 8_000),
        ("a.avi", "mpeg4", "mp3", 44_100),
        ("a.ts", "libx264", "aac", 48_000),
        ("a.mpg", "mpeg1video", "mp2", 44_100),
        ("a.flv", "libx264", "aac", 44_100),
    ],
)
def test_every_container_gives_all_frames_and_the_sound(tmp_path, name, codec, sound_codec, rate):
    fps = 25 if name.endswith("mpg") else 5
    path = film.write_film(
        tmp_path / name, fps=fps, codec=codec, sound_codec=sound_codec, rate=rate
    )
    info = video.probe(path)
    times = [frame.time for frame in video.read_frames(info)]
    assert len(times) == 2 * fps
    # The median: AVI writers may leave a hole after the first picture.
    assert np.median(np.diff(times)) == pytest.approx(1 / fps, abs=0.0011)
    sound = read_sound(path)
    assert len(sound) == pytest.approx(2 * audio.SAMPLE_RATE, rel=0.08)
    middle = sound[8000:16000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) * 2 == 440  # Hz: 0.5 s windows have bins of 2 Hz


def test_missing_file_is_not_found(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"no video .*nowhere\.mp4"):
        video.probe(tmp_path / "nowhere.mp4")


def truncate(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def damage(path, begin, end):
    """Overwrites the picture and sound data between two shares of the file's length."""
    data = bytearray(path.read_bytes())
    begin, end = (int(len(data) * share) for share in (begin, end))
    data[begin:end] = np.random.default_rng(0).bytes(end - begin)
    path.write_bytes(data)


def test_text_called_mp4_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    with pytest.raises(errors.BadValueError, match=r"cannot read .*text\.mp4"):
        video.probe(tmp_path / "text.mp4")


def test_empty_file_is_no_video(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(errors.BadValueError, match=r"cannot read .*empty\.mp4"):
        video.probe(tmp_path / "empty.mp4")


def test_folder_is_no_video(tmp_path):
    with pytest.raises(errors.BadValueError, match="Is a directory"):
        video.probe(tmp_path)


def test_truncated_mp4_without_its_index_is_no_video(tmp_path):
    film.write_film(tmp_path / "a.mp4")
    truncate(tmp_path / "a.mp4", 0.5)
    with pytest.raises(errors.BadValueError, match="damaged or incomplete"):
        video.probe(tmp_path / "a.mp4")


def test_pictures_that_cannot_be_decoded_are_an_error(tmp_path):
    film.write_film(tmp_path / "a.mp4", size=(320, 240), sound=None, picture=film.quadrants)
    data = (tmp_path / "a.mp4").read_bytes()
    index = data.index(b"moov")
    damage(tmp_path / "a.mp4", 48 / len(data), (index - 4) / len(data))
    with pytest.raises(errors.BadValueError, match="none of its pictures can be decoded"):
        video.probe(tmp_path / "a.mp4")


def test_sound_file_has_no_video_stream(tmp_path):
    film.write_film(tmp_path / "a.m4a", picture=None)
    with pytest.raises(errors.BadValueError, match=r"no video stream \(it holds: audio\)"):
        video.probe(tmp_path / "a.m4a")


def test_cover_picture_of_a_sound_file_is_no_video_stream(tmp_path):
    path = str(tmp_path / "a.mp3")
    with av.open(path, "w") as output:
        stream = output.add_stream("mp3", rate=44_100)
        cover = output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(film.grey(1, (16, 16)), format="rgb24")
        output.mux(cover.encode(picture))
        output.mux(cover.encode(None))
        output.mux(film.encode_sound(stream, film.tone, 44_100, 0))
    with pytest.raises(errors.BadValueError, match=r"holds: a cover picture, audio\)"):
        video.probe(path)


def test_film_without_a_sound_track_says_so(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.mp4", sound=None))
    assert not info.has_audio
    with pytest.raises(errors.BadValueError, match=r"no audio track.*--allow-silent"):
        video.require_audio(info)


def test_sound_track_of_zero_length_says_so(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.mkv", sound_seconds=0))
    assert not info.has_audio
    with pytest.raises(errors.BadValueError, match="an audio track of zero length"):
        video.require_audio(info)


# --- frames -----------------------------------------------------------------------------------


def corners(rgb):
    """What each quadrant shows: "r", "g", "b" or "k", reading order."""
    height, width = rgb.shape[:2]
    names = ""
    for y, x in itertools.product((1, 3), (1, 3)):
        pixel = rgb[y * height // 4, x * width // 4].astype(int)
        names += "rgb"[pixel.argmax()] if pixel.max() > 100 else "k"
    return names


@pytest.mark.parametrize(
    ("turn", "mirror", "shown"),
    [
        (0, False, "rgbk"),
        (90, False, "gkrb"),  # counter-clockwise: the top right corner comes to the top left
        (180, False, "kbgr"),
        (-90, False, "brkg"),
        (0, True, "grkb"),
        (90, True, "kgbr"),
        (180, True, "bkrg"),
        (-90, True, "rbgk"),
    ],
)
def test_frames_are_upright(tmp_path, turn, mirror, shown):
    path = film.write_film(
        tmp_path / "a.mp4",
        picture=film.quadrants,
        size=(64, 32),
        turn=turn,
        mirror=mirror,
        seconds=1,
    )
    info = video.probe(path)
    rgb = next(video.read_frames(info)).rgb()
    assert (info.width, info.height) == ((32, 64) if turn % 180 else (64, 32))
    assert rgb.shape == (info.height, info.width, 3)
    assert corners(rgb) == shown


def test_frames_keep_odd_sizes(tmp_path):
    path = film.write_film(tmp_path / "a.mkv", size=(37, 23), seconds=1)
    assert next(video.read_frames(video.probe(path))).rgb().shape == (23, 37, 3)


def test_frames_come_at_their_own_times_when_the_rate_varies(tmp_path):
    stamps = [0, 0.1, 0.15, 0.9, 1.0, 2.5]
    info = video.probe(film.write_film(tmp_path / "a.mp4", stamps=stamps, sound=None))
    frames = list(video.read_frames(info))
    np.testing.assert_allclose([frame.time for frame in frames], stamps, atol=1e-4)
    assert [film.grey_index(frame.rgb()) for frame in frames] == list(range(6))


def test_time_zero_is_the_first_picture(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.mkv", stamps=[3.0, 3.2, 3.4]))
    np.testing.assert_allclose(
        [frame.time for frame in video.read_frames(info)], [0, 0.2, 0.4], atol=1e-6
    )


def test_stream_without_time_stamps_goes_at_its_frame_rate(tmp_path):
    info = video.probe(film.write_film(tmp_path / "a.h264", sound=None))
    times = [frame.time for frame in video.read_frames(info)]
    np.testing.assert_allclose(times, np.arange(10) / info.fps, atol=1e-6)


def test_clock_that_is_set_back_goes_on(tmp_path):
    """Two recordings one after the other in one file, the second with pictures of another size."""
    film.write_film(tmp_path / "a.ts", size=(48, 32), rate=48_000)
    film.write_film(tmp_path / "b.ts", size=(64, 48), rate=48_000)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    info = video.probe(both)
    frames = list(video.read_frames(info))
    assert len(frames) == 20
    steps = np.diff([frame.time for frame in frames])
    np.testing.assert_allclose(np.delete(steps, 9), 0.2, atol=1e-3)
    # The second one begins when picture and sound of the first are over: AAC's last packet lasts
    # for 27 ms more than the pictures.
    assert steps[9] == pytest.approx(0.2267, abs=1e-3)
    assert {frame.rgb().shape for frame in frames} == {(32, 48, 3)}
    assert len(read_sound(both)) == pytest.approx(4 * audio.SAMPLE_RATE, rel=0.05)


def test_damaged_packets_are_skipped_and_counted(tmp_path, caplog):
    film.write_film(tmp_path / "a.mp4", size=(128, 96), picture=film.quadrants, seconds=8)
    damage(tmp_path / "a.mp4", 0.4, 0.6)  # an mp4's index, at its end, still names all packets
    info = video.probe(tmp_path / "a.mp4")
    times = [frame.time for frame in video.read_frames(info)]
    assert times[0] == 0
    assert len(times) < 40
    assert "damaged packets skipped" in caplog.text


def test_file_that_breaks_off_gives_what_is_there(tmp_path):
    film.write_film(tmp_path / "a.mkv", size=(128, 96), picture=film.quadrants, seconds=8)
    truncate(tmp_path / "a.mkv", 0.5)
    assert 5 < len(list(video.read_frames(video.probe(tmp_path / "a.mkv")))) < 40


# --- sound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_sound_is_what_resampling_the_whole_gives(tmp_path, layout):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 22_050))
    channels = noise[: 1 + (layout == "stereo")]
    path = film.write_film(
        tmp_path / "a.mkv",
        seconds=1,
        rate=22_050,
        sound_codec="pcm_s16le",
        layout=layout,
        sound=lambda times: channels,
    )
    expected = audio.resample(channels.mean(0).astype(np.float32), 22_050.0)
    np.testing.assert_allclose(read_sound(path), expected, atol=1e-4)


def test_surround_sound_is_mixed_down_with_the_centre(tmp_path):
    def centre_only(times):
        silence = np.zeros_like(times)
        return np.stack([silence, silence, film.tone(times), silence, silence, silence])

    path = film.write_film(
        tmp_path / "a.mkv", sound=centre_only, layout="5.1", rate=48_000, sound_codec="flac"
    )
    assert np.abs(read_sound(path)).max() > 0.1  # a mean over six channels would leave 0.08


def beep(begin, end):
    return lambda times: film.tone(times) * ((times >= begin) & (times < end))


def heard(sound, threshold=0.1):
    """Begin and end of what is loud, in seconds."""
    loud = np.flatnonzero(np.abs(sound) > threshold) / audio.SAMPLE_RATE
    return loud[0], loud[-1]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_late_sound_stays_late(tmp_path, name):
    path = film.write_film(tmp_path / name, seconds=3, sound_start=1.03, sound_seconds=1)
    np.testing.assert_allclose(heard(read_sound(path)), (1.03, 2.03), atol=0.03)


def test_sound_before_the_first_picture_is_left_out(tmp_path):
    path = film.write_film(
        tmp_path / "a.mkv",
        stamps=[1.5, 2.0, 2.5],
        sound=beep(2, 2.5),
        sound_seconds=3,
        sound_codec="flac",
    )
    np.testing.assert_allclose(heard(read_sound(path)), (0.5, 1.0), atol=0.005)


def test_sound_is_in_step_with_the_pictures_after_aac(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", sound=beep(0.5, 1.25))
    np.testing.assert_allclose(heard(read_sound(path)), (0.5, 1.25), atol=0.01)


# --- clips ------------------------------------------------------------------------------------


def shown(clip):
    """Indices of a clip's frames, -1 where there is none."""
    pairs = zip(clip.frames, clip.frame_mask, strict=True)
    return [film.grey_index(rgb) if exists else -1 for rgb, exists in pairs]


def test_clip_has_the_frame_on_screen_at_the_offset(tmp_path):
    (clip,) = read_clips(film.write_film(tmp_path / "a.mp4", seconds=2, fps=5), frame_offset=0.5)
    assert shown(clip) == [2, 7]  # frame 2 is on screen from 0.4 to 0.6
    np.testing.assert_allclose(clip.times, [0.5, 1.5])


def test_avsbench_offset_takes_the_frame_its_authors_took(tmp_path):
    """AVSBench: frame int(l * fps + 15 / 16 * fps) of second l."""
    path = film.write_film(tmp_path / "a.mp4", seconds=2, fps=16)
    (clip,) = read_clips(path, frame_offset=15 / 16)
    assert shown(clip) == [int(second * 16 + 15 / 16 * 16) for second in (0, 1)]


def test_film_shorter_than_a_clip_is_padded_with_masked_frames(tmp_path):
    (clip,) = read_clips(film.write_film(tmp_path / "a.mp4", seconds=1))
    assert shown(clip) == [2, -1]
    assert np.isnan(clip.times[1])
    assert not clip.frames[1].any()
    assert not clip.waveform[audio.SAMPLE_RATE :].any()


def test_last_clip_reaches_back_over_real_frames_and_their_sound(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=4, sound=beep(2.25, 2.75))
    first, second = read_clips(path, seconds=3)
    assert second.frame_mask.all()
    assert shown(second) == [shown(first)[1], shown(first)[2], 17]
    np.testing.assert_allclose(heard(second.waveform), (1.25, 1.75), atol=0.01)


@pytest.mark.parametrize("fps", [1, 2, 3])
@pytest.mark.parametrize("seconds", [4.4, 5.1, 6.0, 7.8])
def test_every_frame_is_asked_for_once_and_all_are_real(tmp_path, seconds, fps):
    path = film.write_film(tmp_path / "a.mp4", seconds=seconds, fps=6, sound=film.tone)
    clips = read_clips(path, seconds=3, fps=fps)
    times = np.concatenate([clip.times for clip in clips])
    times = np.sort(times[np.isfinite(times)])
    assert len(times) == len(set(times))
    np.testing.assert_allclose(times[:-1], 0.5 + np.arange(len(times) - 1) / fps)
    assert all(clip.frame_mask.all() for clip in clips)
    assert all(np.abs(clip.waveform[:32_000]).mean() > 0.1 for clip in clips)


@pytest.mark.parametrize(("seconds", "count"), [(0.2, 1), (1.4, 1), (1.6, 2), (2.0, 2), (2.4, 2)])
def test_last_second_counts_if_half_of_it_exists(tmp_path, seconds, count):
    path = film.write_film(tmp_path / "a.mp4", seconds=seconds, sound_seconds=3)
    clips = read_clips(path, seconds=3, frame_offset=15 / 16)
    assert sum(int(clip.frame_mask.sum()) for clip in clips) == count


def test_frame_of_an_incomplete_second_is_the_last_of_the_film(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=1.6)
    (clip,) = read_clips(path, frame_offset=15 / 16)
    assert shown(clip) == [4, 7]
    np.testing.assert_allclose(clip.times, [15 / 16, 1.4])


def test_a_frame_rate_of_29_97_gives_one_mask_a_second(tmp_path):
    fps = Fraction(30_000, 1001)
    (clip,) = read_clips(
        film.write_film(tmp_path / "a.mp4", seconds=3.02, fps=fps, picture=film.quadrants),
        seconds=3,
    )
    np.testing.assert_allclose(clip.times, [0.5, 1.5, 2.5])


def test_phases_shift_frames_and_sound(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=4, fps=10, sound=beep(1.0, 1.5))
    clips = read_clips(path, frame_offset=0.5, fps=2)
    assert [clip.index for clip in clips] == [0, 0, 1, 1]
    np.testing.assert_allclose([c.times for c in clips], [[0.5, 1.5], [1, 2], [2.5, 3.5], [3, 3.9]])
    assert [shown(clip) for clip in clips] == [[5, 15], [10, 20], [25, 35], [30, 39]]
    np.testing.assert_allclose(heard(clips[0].waveform), (1.0, 1.5), atol=0.01)
    np.testing.assert_allclose(heard(clips[1].waveform), (0.5, 1.0), atol=0.01)


def test_phases_beyond_a_short_film_do_not_exist(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", seconds=0.6)
    assert [clip.times[0] for clip in read_clips(path, fps=5)] == [0.5]


def test_a_still_picture_gives_a_frame_every_second(tmp_path):
    path = film.write_film(tmp_path / "a.mkv", stamps=[0, 3.5], sound_seconds=4)
    clips = read_clips(path, frame_offset=0.5)
    assert [shown(clip) for clip in clips] == [[0, 0], [0, 1]]


@pytest.mark.parametrize("sound_seconds", [0.5, 5])
def test_waveform_has_the_length_of_the_clip_whatever_the_sound(tmp_path, sound_seconds):
    path = film.write_film(tmp_path / "a.mp4", seconds=3, sound_seconds=sound_seconds)
    first, second = read_clips(path)
    assert first.waveform.shape == second.waveform.shape == (2 * audio.SAMPLE_RATE,)
    ends = heard(first.waveform)[1]
    assert ends == pytest.approx(min(sound_seconds, 2), abs=0.05)


def test_film_without_sound_is_refused_unless_silence_is_allowed(tmp_path):
    path = film.write_film(tmp_path / "a.mp4", sound=None)
    with pytest.raises(errors.BadValueError, match="no audio track"):
        read_clips(path)
    (clip,) = read_clips(path, allow_silent=True)
    assert not clip.waveform.any()


@pytest.mark.parametrize("size", [16, 64])
def test_frames_are_resized(tmp_path, size):
    path = film.write_film(tmp_path / "a.mp4", picture=film.quadrants)
    (clip,) = read_clips(path, size=size)
    assert clip.frames.shape == (2, size, size, 3)
    assert corners(clip.frames[0]) == "rgbk"


class Stamped:
    """Stands in for a frame: its picture is its number in the film."""

    def __init__(self, number, time, duration):
        self.number, self.time, self.duration = number, time, duration

    def rgb(self):
        return np.full((1, 1, 3), self.number, np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 3000), max_size=40),
    st.integers(1, 2000),
    st.sampled_from([0.0, 0.5, 15 / 16]),
    st.integers(1, 7),
)
def test_any_film_gives_the_frames_on_screen_at_rising_times(steps, tail, offset, fps):
    stamps = np.cumsum([0, *steps]) / 1000
    durations = np.append(np.diff(stamps), tail / 1000)
    frames = [Stamped(i, *pair) for i, pair in enumerate(zip(stamps, durations, strict=True))]
    end = stamps[-1] + tail / 1000
    info = video.VideoInfo("film", 1, 1, 25.0, None, 0.0, 0, 0, "no audio track")
    with unittest.mock.patch.object(video, "read_frames", lambda info: iter(frames)):
        samples = list(video._sample_frames(info, offset, fps, None))
    times = np.array([time for _, time, _ in samples])
    assert [j for j, _, _ in samples] == list(range(len(samples)))
    assert (np.diff(times) > 0).all()
    assert times[0] >= 0 and times[-1] < end
    assert len(samples) >= int((end - 1) * fps)  # all whole seconds count
    for _, time, rgb in samples:
        assert rgb[0, 0, 0] == np.searchsorted(stamps, time + 1e-6, "right") - 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 50), max_size=30),
    st.lists(st.integers(0, 40), min_size=1, max_size=10),
    st.integers(1, 60),
)
def test_windows_do_not_depend_on_how_the_sound_comes_in_blocks(blocks, steps, length):
    samples = np.arange(1, sum(blocks) + 1, dtype=np.float32)
    sound = video._Sound(np.split(samples, np.cumsum(blocks)))
    endless = np.concatenate([samples, np.zeros(sum(steps) + length, np.float32)])
    for begin in np.cumsum(steps):
        window = sound.window(int(begin), length)
        np.testing.assert_array_equal(window, endless[begin : begin + length])


def test_memory_does_not_grow_with_the_length(tmp_path):
    def peak(seconds):
        path = film.write_film(tmp_path / f"{seconds}.mkv", seconds=seconds, fps=2, size=(64, 64))
        info = video.probe(path)
        tracemalloc.start()
        count = sum(1 for _ in video.read_clips(info, seconds=2, frame_offset=0.5, fps=2))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == seconds
        return top

    peak(8)  # first-time allocations
    assert peak(64) < 1.3 * peak(8)
