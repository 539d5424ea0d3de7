"""The builder: from a folder of AVSBench to what `open_split` delivers, interruptions included."""

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from avs_jax import data, errors
from avs_jax.data import pipeline, shards, transforms
from avs_jax.data.avsbench import build, clips
from tests.data.avsbench import mini_avsbench as mini

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return mini.write_all(tmp_path_factory.mktemp("release"), size=32)


@pytest.fixture
def source(release, tmp_path):
    """A copy to break."""
    return shutil.copytree(release, tmp_path / "source")


@pytest.fixture(scope="module")
def built(release, tmp_path_factory):
    """A data directory with all three subsets."""
    folder = tmp_path_factory.mktemp("built")
    for subset in build.SUBSETS:
        build.build(subset, release, folder)
    return folder


def read(folder, subset, split):
    return {
        example["id"]: example for example in data.open_split("avsbench", subset, split, folder)
    }


@pytest.mark.parametrize(
    ("subset", "counts"), [("s4", (4, 2, 2)), ("ms3", (2, 1, 1)), ("avss", (5, 3, 3))]
)
def test_splits_hold_the_clips_of_the_table(built, subset, counts):
    lengths = (len(data.open_split("avsbench", subset, split, built)) for split in data.SPLITS)
    assert tuple(lengths) == counts


def test_s4_trains_on_the_first_label_only(built):
    for example in read(built, "s4", "train").values():
        assert example["label_mask"].tolist() == [True, False, False, False, False]


def test_s4_is_evaluated_on_every_label(built):
    for example in read(built, "s4", "test").values():
        assert example["label_mask"].all()


def test_avss_mixes_five_and_ten_frames(built):
    frames = {name: e["frame_mask"].sum() for name, e in read(built, "avss", "train").items()}
    expected = {row.uid: row.num_frames for row in mini.SEMANTIC_CLIPS if row.split == "train"}
    assert frames == expected


def test_avss_labels_as_many_frames_as_the_release(built):
    labelled = {name: e["label_mask"].sum() for name, e in read(built, "avss", "train").items()}
    expected = {row.uid: row.num_labelled for row in mini.SEMANTIC_CLIPS if row.split == "train"}
    assert labelled == expected


def test_pictures_of_s4_are_those_of_the_release(built):
    example = read(built, "s4", "test")["zz_Z"]
    for index in range(5):
        frame, mask = (draw("zz_Z", index, 32, 32) for draw in (mini.draw_frame, mini.draw_mask))
        np.testing.assert_array_equal(example["frames"][index], frame)
        np.testing.assert_array_equal(example["label"][index], mask)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_of_avss_are_class_ids_at_original_size(built, split):
    rows = {row.uid: row for row in mini.SEMANTIC_CLIPS}
    for name, example in read(built, "avss", split).items():
        row = rows[name]
        assert example["frames"].shape[1:3] == row.size[::-1]
        for index in range(row.num_labelled):
            expected = mini.draw_label(row, index)
            np.testing.assert_array_equal(example["label"][index], expected)


def test_sound_is_the_mean_of_the_channels(built):
    waveform = read(built, "ms3", "test")["_Q2"]["waveform"]
    expected = mini.draw_sound("_Q2", 5.0, 16_000).mean(axis=1) / 32768
    np.testing.assert_allclose(waveform, expected, atol=1 / 32768)


def test_records_say_subset_and_category(built):
    source = tfds.builder_from_directory(built / "avsbench/avss/1.0.0").as_data_source("test")
    found = {(record["subset"], record["category"]) for record in source}
    assert found == {
        (b"v1s", b"man_off-the-screen"),
        (b"v1m", b"frying-food_man"),
        (b"v2", b"missile-rocket"),
    }


@pytest.mark.parametrize("subset", ["s4", "ms3", "avss"])
def test_batches_for_training_and_evaluation(built, subset):
    train = pipeline.train_batches(
        data.open_split("avsbench", subset, "train", built),
        batch_size=2,
        seed=0,
        transforms=transforms.train_transforms(32),
        num_threads=0,
    )
    test = pipeline.eval_batches(
        data.open_split("avsbench", subset, "test", built),
        batch_size=2,
        transforms=transforms.eval_transforms(32),
    )
    seconds = data.DATASETS["avsbench"].seconds[subset]
    for batch in (next(train), *test):
        assert batch["frames"].shape == (2, seconds, 32, 32, 3)
        assert batch["label"].max() < (71 if subset == "avss" else 2)


def test_repacked_set_has_the_same_pictures(built, release, tmp_path):
    build.build("s4", release, tmp_path, repack=True)
    for name, example in read(tmp_path, "s4", "test").items():
        expected = read(built, "s4", "test")[name]
        np.testing.assert_array_equal(example["frames"], expected["frames"])


def test_summary_has_a_line_for_each_split_and_subset(built, release):
    info = build.build("avss", release, built)
    text = build.summarize(info)
    assert "       train          v2        4750           2           2          20" in text
    assert "  validation         v1m          64           1           1           5" in text
    assert "wavs shorter than their clip: 1." in text


def test_second_build_keeps_what_is_there(built, release):
    path = built / "avsbench/s4/1.0.0/dataset_info.json"
    before = path.stat().st_mtime_ns
    build.build("s4", release, built)
    assert path.stat().st_mtime_ns == before


def test_nothing_but_the_data_set_is_left(release, tmp_path):
    build.build("ms3", release, tmp_path)
    assert os.listdir(tmp_path) == ["avsbench"]


def test_tensorflow_datasets_can_build_it_too(release, tmp_path):
    builder = build.AVSBench(config="ms3", data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=release)
    builder.download_and_prepare(download_config=config)
    assert len(builder.as_data_source("train")) == 2


def test_broken_clip_keeps_the_build_from_finishing(source, tmp_path, capfd):
    wav = next(source.glob("**/audio_wav/train/*/1e5.wav"))
    wav.write_bytes(b"\x80\x04.")
    with pytest.raises(errors.BadValueError, match=r"1 of 8 clips are broken .* --skip-broken"):
        build.build("s4", source, tmp_path / "out")
    assert f"1e5: pickled_wav {wav}" in capfd.readouterr().err
    with pytest.raises(errors.NotFoundError):
        data.find_built("avsbench", "s4", tmp_path / "out")


def test_broken_clips_are_left_out_when_asked_and_counted(source, tmp_path):
    next(source.glob("**/audio_wav/train/*/1e5.wav")).unlink()
    info = build.build("s4", source, tmp_path / "out", skip_broken=True)
    assert info.splits["train"].num_examples == 3
    assert info.metadata["left_out"] == ["1e5"]
    line = next(x for x in build.summarize(info).splitlines() if "train" in x)
    assert line.split() == ["train", "s4", "3452", "4", "3", "15", "3", "1"]


def test_repaired_clip_lets_the_build_finish(source, tmp_path):
    wav = next(source.glob("**/audio_wav/train/*/1e5.wav"))
    wav.rename(f"{wav}.away")
    with pytest.raises(errors.BadValueError):
        build.build("s4", source, tmp_path / "out")
    pathlib.Path(f"{wav}.away").rename(wav)
    info = build.build("s4", source, tmp_path / "out")
    assert info.splits["train"].num_examples == 4


def test_bad_row_of_the_table_keeps_the_build_from_finishing(source, tmp_path):
    with open(next(source.glob("**/s4_meta_data.csv")), "a") as file:
        file.write("x,0,dog_barking,dev\n")
    with pytest.raises(errors.BadValueError, match="broken"):
        build.build("s4", source, tmp_path / "out")


def test_split_without_a_usable_clip_is_left_out(source, tmp_path):
    shutil.rmtree(next(source.glob("**/visual_frames/val")))
    info = build.build("s4", source, tmp_path / "out", skip_broken=True)
    assert set(info.splits) == {"train", "test"}


def test_build_without_any_usable_clip_fails(source, tmp_path):
    shutil.rmtree(next(source.glob("**/s4_data/audio_wav")))
    with pytest.raises(errors.BadValueError, match="not one clip"):
        build.build("s4", source, tmp_path / "out", skip_broken=True)


def test_interrupted_build_looks_unfinished_and_goes_on(release, tmp_path, monkeypatch):
    read_clip, seen = clips.read_clip, []

    def remember(clip, repack):
        if clip.split == "val" and is_first:
            raise KeyboardInterrupt
        seen.append(clip.id)
        return read_clip(clip, repack)

    is_first = True
    monkeypatch.setattr(clips, "read_clip", remember)
    with pytest.raises(KeyboardInterrupt):
        build.build("s4", release, tmp_path)
    with pytest.raises(errors.NotFoundError):
        data.find_built("avsbench", "s4", tmp_path)
    is_first = False
    build.build("s4", release, tmp_path)
    assert len(seen) == 8  # the four of train, then the others only


def test_killed_build_leaves_nothing_finished_and_goes_on(source, tmp_path):
    wav = next(source.glob("**/audio_wav/test/_Q2.wav"))
    wav.rename(tmp_path / "aside.wav")
    os.mkfifo(wav)  # a file that takes forever to read: the build hangs there until it is killed
    command = [sys.executable, "-m", "avs_jax.data.avsbench.build", "ms3", source, tmp_path / "out"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    staging = tmp_path / "out" / ".building-avsbench-ms3"
    deadline = time.monotonic() + 60
    while not list(staging.glob("test-*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (staging / "train-00000.array_record.json").exists()
    with pytest.raises(errors.NotFoundError, match=r"half built|no avsbench/ms3"):
        data.find_built("avsbench", "ms3", tmp_path / "out")
    wav.unlink()
    (tmp_path / "aside.wav").rename(wav)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "avsbench/ms3/1.0.0" in done.stdout
    assert len(data.open_split("avsbench", "ms3", "test", tmp_path / "out")) == 1
    assert os.listdir(tmp_path / "out") == ["avsbench"]


@pytest.mark.parametrize("flag", ["--any-count", "--any_count"])
def test_flag_of_the_checker_is_taken(release, tmp_path, capsys, flag):
    build.main(["s4", str(release), str(tmp_path), flag])
    assert "avsbench/s4/1.0.0" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_shard_in_the_middle_that_was_cut_off_is_an_error_at_opening(
    release, tmp_path, monkeypatch, keep
):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 1)
    build.build("s4", release, tmp_path)
    files = sorted(data.find_built("avsbench", "s4", tmp_path).glob("*train*"))
    assert len(files) == 4
    content = files[1].read_bytes()
    files[1].write_bytes(content[: int(keep * len(content))])
    with pytest.raises(errors.BadValueError, match=r"cannot be read \(0 of 1 records.*build it"):
        data.open_split("avsbench", "s4", "train", tmp_path)


def test_two_builds_do_not_write_at_once(release, tmp_path):
    staging = tmp_path / ".building-avsbench-s4"
    staging.mkdir()
    with open(staging / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(errors.BadValueError, match="another build writes"):
            build.build("s4", release, tmp_path)


def test_many_shards_make_one_split(release, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 3)
    build.build("s4", release, tmp_path)
    assert set(read(tmp_path, "s4", "train")) == {name for name, _ in mini.S4_CLIPS["train"]}


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_binary_sets_from_the_semantic_layout_say_so_loudly(release, tmp_path, subset, capfd):
    source = release / "AVSBench_semantic"
    info = build.build(subset, source, tmp_path, rebuild_from="semantic")
    warning = f"These are NOT the labels of {subset.upper()}"
    assert warning in capfd.readouterr().err
    assert warning in build.summarize(info)
    assert info.metadata["labels"] == "semantic"


def test_binary_set_from_the_semantic_layout_marks_every_class(release, tmp_path):
    build.build("ms3", release, tmp_path, rebuild_from="semantic")
    example = read(tmp_path, "ms3", "train")["_19NVGk6Zt8_0"]
    row = next(row for row in mini.SEMANTIC_CLIPS if row.uid == "_19NVGk6Zt8_0")
    np.testing.assert_array_equal(example["label"][1], mini.draw_label(row, 1) > 0)


def test_labels_of_another_layout_are_not_taken_for_ones_own(release, built):
    with pytest.raises(errors.BadValueError, match="labels of the object layout, not the semantic"):
        build.build("s4", release, built, rebuild_from="semantic")


def test_missing_layout_names_the_one_that_is_there(release, tmp_path):
    with pytest.raises(
        errors.NotFoundError, match=r"no S4 .*, only AVSS .* --rebuild_from semantic"
    ):
        build.build("s4", release / "AVSBench_semantic", tmp_path)


def test_avss_cannot_be_had_from_the_object_layout(release, tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"no AVSS .*, only"):
        build.build("avss", release / "AVSBench_object", tmp_path)


def test_avss_is_not_rebuilt(release, tmp_path):
    with pytest.raises(errors.BadValueError, match="avss is the semantic layout"):
        build.build("avss", release, tmp_path, rebuild_from="semantic")


def test_unknown_subset_lists_known_ones(release, tmp_path):
    with pytest.raises(errors.UnknownNameError, match="'s5'; known: avss, ms3, s4"):
        build.build("s5", release, tmp_path)


def test_buckets_are_not_built_in(release):
    with pytest.raises(errors.BadValueError, match="build in a local folder"):
        build.build("s4", release, "gs://bucket/data")


def test_destination_that_is_a_file_is_an_error(release, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadValueError, match="cannot write"):
        build.build("s4", release, tmp_path / "file")


def test_program_prints_the_summary(release, tmp_path, capsys):
    build.main(["ms3", str(release), str(tmp_path), "--num_workers", "1"])
    assert "avsbench/ms3/1.0.0 in" in capsys.readouterr().out


def test_script_builds_from_a_clone(release, tmp_path):
    script = [ROOT / "launch" / "build_data.sh", "ms3", release, "-out", "--skip-broken"]
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run(script, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(data.open_split("avsbench", "ms3", "train", tmp_path / "-out")) == 2


def test_script_without_arguments_tells_its_usage():
    done = subprocess.run([ROOT / "launch" / "build_data.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and "launch/build_data.sh s4|ms3|avss SOURCE DEST" in done.stderr
