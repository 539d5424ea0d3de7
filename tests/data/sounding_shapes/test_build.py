"""The builder of sounding_shapes, and its program."""

import pathlib
import sys

import av
import numpy as np
import pytest

from avs_jax import data, errors
from avs_jax.data.sounding_shapes import build, scenes
from tests.data.tiny import build_tiny


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    for subset in ("s4", "ms3", "avss"):
        build_tiny(folder, subset, clips=(4, 2, 3))
    return folder


@pytest.mark.parametrize("subset", ["s4", "ms3", "avss"])
def test_record_i_is_clip_i_pixel_by_pixel(data_dir, subset):
    source = data.open_split("sounding_shapes", subset, "test", data_dir)
    for index in range(len(source)):
        example = source[index]
        clip = scenes.render_clip(scenes.plan_clip(subset, "test", index), 32)
        seconds = len(clip.frames)
        assert example["id"] == f"{subset}/test/{index:06d}"
        np.testing.assert_array_equal(example["label"][:seconds], clip.label)
        np.testing.assert_array_equal(example["objects"][:seconds], clip.objects)
        wave = clip.waveform.astype(np.float32) / 32768
        np.testing.assert_array_equal(example["waveform"][: len(wave)], wave)
        # JPEG at quality 95 stays within the noise that is in the frames anyway.
        error = example["frames"][:seconds].astype(float) - clip.frames
        assert np.abs(error).mean() < 4


def test_s4_trains_on_the_first_frame_only(data_dir):
    train, test = (data.open_split("sounding_shapes", "s4", s, data_dir) for s in ("train", "test"))
    assert [train[i]["label_mask"].tolist() for i in range(2)] == [[True] + [False] * 4] * 2
    assert train[0]["label"][1:].max() == 0
    assert test[0]["label_mask"].all()


def test_class_ids_and_counts(data_dir):
    source = data.open_split("sounding_shapes", "ms3", "train", data_dir)
    for index in range(len(source)):
        example = source[index]
        ids = set(np.unique(example["objects"])) - {0}
        assert ids <= set(range(1, len(scenes.CLASSES)))
        assert len(ids) <= example["num_objects"] <= 3


def test_tensorflow_is_never_imported(data_dir):
    assert "tensorflow" not in sys.modules


def test_a_second_build_reuses_the_first(data_dir):
    folder = build.build(data_dir, "ms3", size=32, clips=(4, 2, 3))
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).iterdir()}
    build.build(data_dir, "ms3", size=32, clips=(4, 2, 3))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_nothing_but_the_data_set_is_left_behind(tmp_path):
    build_tiny(tmp_path, clips=(1, 1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["sounding_shapes"]
    assert [path.name for path in (tmp_path / "sounding_shapes" / "ms3").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"size": 48}, "size=48"),
        ({"clips": (5, 2, 3)}, r"clips=\(5, 2, 3\)"),
        ({"seed": 1}, "seed=1"),
    ],
)
def test_another_request_for_the_same_folder_is_refused(data_dir, settings, said):
    asked = {"size": 32, "clips": (4, 2, 3)} | settings
    with pytest.raises(errors.BadValueError, match=f"was built with .* not .*{said}"):
        build.build(data_dir, "ms3", **asked)


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"subset": "ms4"}, errors.UnknownNameError, "known: avss, ms3, s4"),
        ({"subset": "ms3", "size": 8}, errors.BadValueError, "at least 16"),
        ({"subset": "ms3", "clips": (1, 2)}, errors.BadValueError, "three numbers"),
        ({"subset": "ms3", "clips": (1, 0, 2)}, errors.BadValueError, "three numbers"),
    ],
)
def test_bad_requests_are_refused(tmp_path, settings, error, said):
    with pytest.raises(error, match=said):
        build.build(tmp_path, **settings)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadValueError, match="cannot write"):
        build.build(tmp_path / "file", "ms3", size=32, clips=(1, 1, 1))


def test_processes_make_the_same_records_in_the_same_order(monkeypatch):
    monkeypatch.setattr(build, "_WORTH_A_PROCESS", 6)
    monkeypatch.setattr(build, "_CHUNK", 3)
    monkeypatch.setattr(build, "_count_cores", lambda: 2)
    make = build.functools.partial(build._make_record, "ms3", "train", 16, 0)
    together = list(build._make_records(make, 12))
    for one, other in zip(together, map(make, range(12)), strict=True):
        assert one["id"] == other["id"]
        assert one["label"] == other["label"]
        np.testing.assert_array_equal(one["waveform"], other["waveform"])


def test_the_program_builds_once_and_says_what_it_made(tmp_path, capsys):
    arguments = ["--subset", "ms3", "--data_dir", str(tmp_path), "--size", "32", "--clips", "2,1,1"]
    for _ in range(2):
        build.main(arguments)
        said = capsys.readouterr().out
        assert "2 train, 1 validation, 1 test clips of 32 px" in said
        assert len(said.splitlines()) == 1


def test_the_program_without_a_task_says_so(capsys):
    with pytest.raises(SystemExit):
        build.main(["--subset", "ms3"])
    assert "give --data_dir, --mp4 or --preview" in capsys.readouterr().err


def test_mp4_shows_and_plays_the_clip(tmp_path):
    plan = scenes.plan_clip("ms3", "test", 0)
    path = tmp_path / "clip.mp4"
    build.write_mp4(plan, path, fps=4, size=48)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        assert container.streams.audio[0].rate == 16000
    assert len(frames) == 20
    assert abs(len(sound) - 80_000) <= 2048
    clip = scenes.render_clip(plan, 48)
    for second in range(5):
        shown = frames[4 * second + 2].astype(float)  # at second + 0.5
        errors_of = [np.abs(shown - frame).mean() for frame in clip.frames]
        assert np.argmin(errors_of) == second
        assert min(errors_of) < 8
    played = np.sqrt((sound[:80_000].reshape(5, 16000) ** 2).mean(1))
    made = np.sqrt((scenes.record(plan).reshape(5, 16000) ** 2).mean(1))
    np.testing.assert_allclose(played, made, rtol=0.15, atol=0.003)


def test_mp4_of_odd_size_is_refused(tmp_path):
    with pytest.raises(errors.BadValueError, match="even size"):
        build.write_mp4(scenes.plan_clip("ms3", "test", 0), tmp_path / "x.mp4", size=33)


def test_preview_is_a_picture(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    build.main(["--preview", str(path), "--count", "2"])
    assert path.stat().st_size > 10_000
    with pytest.raises(errors.BadValueError, match="cannot write"):
        build.main(["--preview", str(tmp_path / "no" / "sheet.png"), "--count", "1"])
