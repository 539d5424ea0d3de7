"""The whole way from a film to masks and overlay, with a model that marks red while it is loud."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc

import av
import jax
import numpy as np
import pytest
from PIL import Image

from avs_jax import errors, predict
from avs_jax.media import video
from avs_jax.prediction import films
from tests.media import film

SETTINGS = {"size": 32, "seconds": 2, "frame_offset": 0.5}


class RedWhileLoud:
    """Marks red pixels in the seconds whose sound is loud; keeps what it was called with."""

    def __init__(self, classes=1):
        self.classes = classes
        self.calls = []

    def __call__(self, frames, waveform, frame_mask):
        assert frames.dtype == np.uint8
        assert waveform.shape == (len(frames), frames.shape[1] * 16_000)
        self.calls.append((frames.shape, frame_mask))
        seconds = waveform.reshape(*frames.shape[:2], 16_000)
        loud = np.abs(seconds).mean(-1) > 0.05
        frames = frames.astype(np.int32)
        red = (frames[..., 0] > 150) & (frames[..., 1] < 100) & loud[..., None, None]
        if self.classes == 1:
            return np.where(red, 5.0, -5.0).astype(np.float32)[..., None]
        logits = np.zeros((*red.shape, self.classes), np.float32)
        logits[..., 0] = 1
        logits[..., 2] = 2 * red
        return logits


def beeps(times):
    """Loud in every odd second."""
    return film.tone(times) * (times.astype(int) % 2)


def make_film(path, seconds=4, **options):
    options = {"picture": film.quadrants, "size": (64, 48), "sound": beeps, "fps": 4} | options
    return film.write_film(path, seconds=seconds, **options)


def predict_masks(path, forward=None, **options):
    settings = SETTINGS | options
    return list(films.predict_masks(video.probe(path), forward or RedWhileLoud(), **settings))


def read_masks(folder):
    return {name: np.asarray(Image.open(folder / name)) for name in sorted(os.listdir(folder))}


# --- masks ------------------------------------------------------------------------------------


def test_masks_mark_what_is_red_while_it_sounds(tmp_path):
    masks = predict_masks(make_film(tmp_path / "a.mp4"))
    assert [mask.time for mask in masks] == [0.5, 1.5, 2.5, 3.5]
    for second, mask in enumerate(masks):
        assert mask.pixels.shape == (48, 64)
        expected = np.zeros((48, 64), bool)
        expected[:24, :32] = second % 2
        assert (mask.pixels.astype(bool) != expected).mean() < 0.03


def test_masks_of_more_classes_are_class_ids(tmp_path):
    masks = predict_masks(make_film(tmp_path / "a.mp4"), RedWhileLoud(classes=3))
    assert not masks[0].binary
    assert [sorted(np.unique(mask.pixels).tolist()) for mask in masks] == [[0], [0, 2]] * 2


def test_masks_of_a_turned_film_are_upright(tmp_path):
    masks = predict_masks(make_film(tmp_path / "a.mp4", turn=90))
    assert masks[1].pixels.shape == (64, 48)
    assert masks[1].pixels[48, 12] == 1  # the red corner has come to the lower left
    assert masks[1].pixels[:32].sum() < 100


@pytest.mark.parametrize("size", [(37, 23), (16, 120)])
def test_masks_have_the_size_of_the_film(tmp_path, size):
    (mask, *_) = predict_masks(make_film(tmp_path / "a.mkv", size=size))
    assert mask.pixels.shape == size[::-1]


def test_more_masks_a_second_come_in_order(tmp_path):
    masks = predict_masks(make_film(tmp_path / "a.mp4", seconds=5), fps=4)
    times = [mask.time for mask in masks]
    np.testing.assert_allclose(times[:-1], 0.5 + np.arange(len(times) - 1) / 4)
    assert times == sorted(set(times))


def test_each_of_more_masks_hears_the_second_around_it(tmp_path):
    """A beep from 1.75 to 2.25: the mask whose second is 1.5 to 2.5 hears most of it."""

    def sound(times):
        return film.tone(times) * ((times >= 1.75) & (times < 2.25))

    class Loudest(RedWhileLoud):
        def __call__(self, frames, waveform, frame_mask):
            loudness = np.abs(waveform.reshape(*frames.shape[:2], 16_000)).mean(-1)
            self.loudness = [*getattr(self, "loudness", []), *loudness.ravel()]
            return super().__call__(frames, waveform, frame_mask)

    forward = Loudest()
    path = make_film(tmp_path / "a.mp4", sound=sound)
    predict_masks(path, forward, fps=4)
    # Clips of 2 s by phases: second 1 of phase 2 is the one from 1.5 s on.
    assert int(np.argmax(forward.loudness)) == 2 * 2 + 1


@pytest.mark.parametrize("batch_size", [2, 3])
@pytest.mark.parametrize("fps", [1, 2])
def test_batches_do_not_change_the_masks(tmp_path, batch_size, fps):
    path = make_film(tmp_path / "a.mp4", seconds=5)
    alone = predict_masks(path, fps=fps)
    together = predict_masks(path, fps=fps, batch_size=batch_size)
    assert [mask.time for mask in alone] == [mask.time for mask in together]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(alone, together, strict=True))


def test_the_model_always_sees_one_shape(tmp_path):
    forward = RedWhileLoud()
    predict_masks(make_film(tmp_path / "a.mp4", seconds=5), forward, batch_size=2)
    assert {shape for shape, _ in forward.calls} == {(2, 2, 32, 32, 3)}
    assert forward.calls[-1][1].tolist() == [[True, True]] * 2  # the last clip, and its copy


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_logits_that_are_no_numbers_fail_with_the_times(tmp_path, classes, batch_size):
    class Broken(RedWhileLoud):
        def __call__(self, frames, waveform, frame_mask):
            logits = super().__call__(frames, waveform, frame_mask)
            if len(self.calls) * batch_size > 1:
                logits[-1, 1, 3, 4] = np.nan
            return logits

    path = make_film(tmp_path / "a.mp4")
    with pytest.raises(errors.BadValueError, match=r"1 frame\(s\) of .* 3.500 s \(at 3.500\)"):
        predict_masks(path, Broken(classes), batch_size=batch_size)


def test_logits_of_frames_that_do_not_exist_may_be_anything(tmp_path):
    class Broken(RedWhileLoud):
        def __call__(self, frames, waveform, frame_mask):
            logits = super().__call__(frames, waveform, frame_mask)
            logits[~frame_mask] = np.nan
            return logits

    assert len(predict_masks(make_film(tmp_path / "a.mp4", seconds=1), Broken())) == 1


def test_threshold_is_a_probability(tmp_path):
    path = make_film(tmp_path / "a.mp4", sound=film.tone)
    at = float(jax.nn.sigmoid(5.0))
    few = predict_masks(path, threshold=at + 0.001)
    many = predict_masks(path, threshold=0.5)
    assert few[0].pixels.sum() == 0 < many[0].pixels.sum()


def test_silent_film_is_refused_unless_allowed(tmp_path):
    path = make_film(tmp_path / "a.mp4", sound=None)
    with pytest.raises(errors.BadValueError, match="no audio track"):
        predict_masks(path)
    assert not any(mask.pixels.any() for mask in predict_masks(path, allow_silent=True))


# --- overlay and files ------------------------------------------------------------------------


def run(path, forward=None, **options):
    return films.predict_video(path, forward or RedWhileLoud(), **(SETTINGS | options))


def tinted(rgb):
    """Share of a picture that has turned pinkish from red."""
    rgb = rgb.astype(int)
    return float(((rgb[..., 2] > 40) & (rgb[..., 0] > 150) & (rgb[..., 1] < 110)).mean())


def test_overlay_holds_the_mask_nearest_in_time(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    run(path, output=tmp_path / "out.mp4")
    frames = list(video.read_frames(video.probe(tmp_path / "out.mp4")))
    assert len(frames) == 16
    for frame in frames:
        assert (tinted(frame.rgb()) > 0.15) == (int(frame.time) % 2 == 1)


def test_overlay_keeps_the_sound(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    summary = run(path, output=tmp_path / "out.mp4")
    assert summary.sound == "copied"
    tracks = [
        [bytes(packet) for packet in av.open(str(p)).demux(audio=0)]
        for p in (path, tmp_path / "out.mp4")
    ]
    assert tracks[0] == tracks[1]


def test_masks_are_files_named_by_their_time(tmp_path):
    summary = run(make_film(tmp_path / "a.mp4"), masks_dir=tmp_path / "new" / "masks", fps=2)
    masks = read_masks(tmp_path / "new" / "masks")
    assert summary.masks == len(masks) == 8
    assert list(masks)[:3] == ["000000.500.png", "000001.000.png", "000001.500.png"]
    assert np.unique(masks["000001.500.png"]).tolist() == [0, 255]
    assert masks["000001.500.png"].shape == (48, 64)


def test_masks_of_classes_are_files_of_ids(tmp_path):
    run(make_film(tmp_path / "a.mp4"), RedWhileLoud(classes=3), masks_dir=tmp_path / "masks")
    assert np.unique(read_masks(tmp_path / "masks")["000001.500.png"]).tolist() == [0, 2]


def test_overlay_and_masks_come_of_one_run(tmp_path):
    forward = RedWhileLoud()
    run(
        make_film(tmp_path / "a.mp4"),
        forward,
        output=tmp_path / "out.mp4",
        masks_dir=tmp_path / "masks",
    )
    assert len(forward.calls) == 2
    assert len(os.listdir(tmp_path / "masks")) == 4


def test_legend_names_the_classes(tmp_path):
    path = make_film(tmp_path / "a.mp4", size=(160, 120))
    names = ("background", "dog", "cat")
    corners = []
    for class_names in (None, names):
        run(path, RedWhileLoud(classes=3), output=tmp_path / "out.mp4", class_names=class_names)
        frame = list(video.read_frames(video.probe(tmp_path / "out.mp4")))[6]
        corners.append(frame.rgb()[105:, :40].astype(int))
    assert np.abs(corners[0] - corners[1]).max() > 100


def test_older_masks_go_and_other_files_stay(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("000099.500.png", "notes.txt"):
        (folder / name).write_text("old")
    run(make_film(tmp_path / "a.mp4"), masks_dir=folder)
    names = sorted(os.listdir(folder))
    assert names == [f"00000{s}.500.png" for s in range(4)] + ["notes.txt"]


def test_masks_reach_a_folder_behind_a_link_on_another_file_system(tmp_path):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (pathlib.Path(folder) / "000099.500.png").write_text("old")
        (tmp_path / "masks").symlink_to(folder)
        run(make_film(tmp_path / "a.mp4"), masks_dir=tmp_path / "masks")
        assert sorted(os.listdir(folder)) == [f"00000{s}.500.png" for s in range(4)]
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "masks"]


def test_older_masks_stay_until_all_new_ones_are_there(tmp_path, monkeypatch):
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "000099.500.png").write_text("old")
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("000003.500.png"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(errors.BadValueError, match="No space left on device"):
        run(make_film(tmp_path / "a.mp4"), masks_dir=folder)
    assert (folder / "000099.500.png").read_text() == "old"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failed_run_leaves_everything_as_it_was(tmp_path, failure):
    path = make_film(tmp_path / "a.mp4", seconds=6)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "000099.500.png").write_text("old")
    (tmp_path / "out.mp4").write_text("old")
    calls = []

    def forward(*batch):
        calls.append(batch)
        if len(calls) == 3:
            raise failure
        return RedWhileLoud()(*batch)

    with pytest.raises(failure):
        run(path, forward, output=tmp_path / "out.mp4", masks_dir=tmp_path / "masks")
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "masks", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "old"
    assert os.listdir(tmp_path / "masks") == ["000099.500.png"]


def test_masks_folder_that_is_a_file_is_an_error(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    with pytest.raises(errors.BadValueError, match="is a file; wanted a folder"):
        run(path, masks_dir=path)


def test_input_is_never_overwritten(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    with pytest.raises(errors.BadValueError, match="is the input video"):
        run(path, output=path)


def test_summary_says_what_was_written_and_how_fast(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    text = str(run(path, output=tmp_path / "out.mp4", masks_dir=tmp_path / "masks"))
    assert f"{tmp_path / 'out.mp4'} (4.0 s, sound copied)" in text
    assert "4 PNG files" in text
    assert re.search(r"\d+\.\d\d x real time", text)


def test_progress_bar_counts_seconds_of_film(tmp_path, capsys):
    run(make_film(tmp_path / "a.mp4"), output=tmp_path / "out.mp4", progress=True)
    assert "4.0/4.0 s of film" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_length(tmp_path):
    def peak(seconds):
        path = make_film(tmp_path / f"{seconds}.mkv", seconds=seconds, fps=2, size=(64, 64))
        tracemalloc.start()
        run(path, output=tmp_path / "out.mp4", fps=2)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(8)  # compiles
    assert peak(48) < 1.3 * peak(8)


def test_no_thread_or_open_file_is_left(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    run(path, output=tmp_path / "out.mp4")
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    run(path, output=tmp_path / "out.mp4")
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


# --- the program ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "o.mp4", "--fps", "0"], "--fps=0: wanted 1 or more"),
        (["--output", "o.mp4", "--batch_size", "0"], "--batch_size=0: wanted 1 or more"),
        (["--output", "o.mp4", "--threshold", "1"], "--threshold=1.0: wanted a probability"),
    ],
)
def test_arguments_that_cannot_be_are_errors(arguments, message):
    with pytest.raises(errors.BadValueError, match=re.escape(message)):
        predict.main(["film.mp4", "--checkpoint", "run", *arguments])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.mp4", {"sound": None}, "no audio track"),
        ("a.mkv", {"sound_seconds": 0}, "an audio track of zero length"),
        ("a.m4a", {"picture": None}, "no video stream"),
    ],
)
def test_film_that_will_not_do_is_refused_before_anything_is_loaded(
    tmp_path, name, options, message
):
    path = make_film(tmp_path / name, **options)
    with pytest.raises(errors.BadValueError, match=message):
        predict.main([path, "--checkpoint", "nowhere", "--output", str(tmp_path / "out.mp4")])


@pytest.mark.parametrize("name", ["-_wznbUu3DY.mp4", "--abc.mp4", "12:30.mp4", "https:a.mp4"])
def test_film_may_be_called_anything(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(make_film(tmp_path / "a.mp4"), name)
    arguments = [name, "--checkpoint", "nowhere", "--output", "-out.mp4", "--masks", "-masks"]
    parsed = predict.parse_arguments(arguments)
    assert os.path.samefile(parsed.video, name)
    assert (parsed.output, parsed.masks) == ("./-out.mp4", "./-masks")
    run(parsed.video, output=parsed.output, masks_dir=parsed.masks)
    assert sorted(os.listdir()) == sorted([name, "-out.mp4", "-masks"])


def test_numbers_below_zero_are_no_films():
    with pytest.raises(errors.BadValueError, match=re.escape("--threshold=-0.5: wanted")):
        predict.main(["a.mp4", "--checkpoint", "x", "--masks", "m", "--threshold", "-0.5"])


_SLOW = """
import sys, time
import numpy as np
from avs_jax.media.partial import removed_on_signals
from avs_jax.prediction import films

def forward(frames, waveform, frame_mask):
    print("running", flush=True)
    if sys.argv[4] == "busy":  # in C++ for minutes, as XLA when it compiles
        np.linalg.eig(np.random.default_rng(0).normal(size=(6000, 6000)))
    time.sleep(600)

with removed_on_signals():
    films.predict_video(sys.argv[1], forward, output=sys.argv[2], masks_dir=sys.argv[3],
                          size=32, seconds=2, frame_offset=0.5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "codes"),
    [
        (signal.SIGTERM, "idle", (-signal.SIGTERM,)),
        (signal.SIGINT, "busy", (128 + signal.SIGINT, -signal.SIGINT)),
    ],
)
def test_signal_ends_it_within_seconds_and_leaves_nothing(tmp_path, number, state, codes):
    path = make_film(tmp_path / "a.mp4")
    (tmp_path / "masks").mkdir()
    command = [sys.executable, "-c", _SLOW, path, tmp_path / "out.mp4", tmp_path / "masks", state]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"running\n"
        child.send_signal(number)
        assert child.wait(timeout=8) in codes
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "masks"]
    assert os.listdir(tmp_path / "masks") == []


def test_missing_checkpoint_is_an_error(tmp_path):
    path = make_film(tmp_path / "a.mp4")
    with pytest.raises(errors.NotFoundError, match="no checkpoint under"):
        predict.main([path, "--checkpoint", str(tmp_path / "x"), "--masks", str(tmp_path / "m")])
    assert os.listdir(tmp_path) == ["a.mp4"]
