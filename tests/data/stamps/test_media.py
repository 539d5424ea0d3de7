"""What each split may use, and media that are not what they should be."""

import json
import pickle

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.data.stamps import media as media_module
from avs_jax.data.stamps.media import SPLITS, Media, divide
from tests.data.stamps import made_up


def overlap(a, b):
    return a.file == b.file and a.start < b.stop and b.start < a.stop


def assert_splits_are_apart(pools):
    """Nothing that a class sounds like is in two of train, test and cross; nor any picture of a
    class that has several."""
    held_out = {name: pools[name] for name in ("test", "cross")}
    for split, held in held_out.items():
        for name, sounds in held.sounds.items():
            for train in pools["train"].sounds[name]:
                assert not any(overlap(train, test) for test in sounds), (split, name)
    for name, pictures in pools["cross"].pictures.items():
        for split in ("train", "validation", "test"):
            assert not set(pictures) & set(pools[split].pictures[name]), name
    for kind in ("backgrounds", "silent", "noises", "speech"):
        shares = [set(getattr(pools[split], kind)) for split in ("train", "validation", "test")]
        assert not (shares[0] & shares[1] or shares[0] & shares[2] or shares[1] & shares[2])
        assert all(shares)


@pytest.mark.parametrize("weak", [False, True])
def test_splits_are_apart(small_media, weak):
    assert_splits_are_apart({split: small_media.pools(split, weak) for split in SPLITS})


def test_class_with_two_of_each_is_tested_on_the_other_picture_and_recording(small_media):
    train, test = small_media.pools("train"), small_media.pools("test")
    assert train.pictures["dog"] == ("pictures/T/dog.png.png",)
    assert test.pictures["dog"] == ("pictures/F/dog.svg.png",)
    assert [x.file for x in train.sounds["dog"]] == ["sounds/T/dog.ogg.wav"]
    assert [x.file for x in test.sounds["dog"]] == ["sounds/F/dog.ogg.wav"]


def test_cross_is_the_other_package_alone(small_media):
    cross, train = small_media.pools("cross"), small_media.pools("train")
    assert set(cross.pictures) == {"cow", "trumpet"}
    assert all(file.startswith("pictures/T/") for x in cross.pictures.values() for file in x)
    assert [x.file for x in cross.sounds["cow"]] == ["sounds/T/cow.ogg.wav"]
    assert [x.file for x in train.sounds["cow"]] == ["sounds/F/cow.ogg.wav"]
    # the trumpet has one recording: its end
    assert cross.sounds["trumpet"][0].start >= train.sounds["trumpet"][0].stop


def test_only_recording_is_cut_in_time(small_media):
    parts = [small_media.pools(s).sounds["crow"][0] for s in ("train", "validation", "test")]
    assert [(x.start, x.stop) for x in parts] == [(0, 57600), (57600, 72000), (72000, 96000)]
    short = [small_media.pools(s).sounds["goat"][0] for s in ("train", "validation", "test")]
    assert [(x.start, x.stop) for x in short] == [(0, 6720), (0, 6720), (6720, 11200)]


def test_weak_recordings_and_drawings_are_left_out_unless_asked_for(small_media):
    assert "bear" not in small_media.pools("train").pictures
    assert "bear" in small_media.pools("train", weak=True).pictures
    turkeys = [small_media.pools("test", drawings=d).pictures["turkey"] for d in (False, True)]
    assert turkeys == [("pictures/T/turkey.png.png",), ("pictures/L/turkey.webp.png",)]


def test_another_file_moves_few_of_the_others():
    files = [f"{i}.png" for i in range(40)]
    before, after = (set(divide(names, "train")) for names in (files, [*files, "new.png"]))
    assert len(before - after) <= 1
    assert sum(len(divide(files, split)) for split in ("train", "validation", "test")) == 40


def test_cutout_ends_where_it_is_transparent(small_media):
    cutout = small_media.cutout("pictures/T/dog.png.png")
    assert cutout[..., 3].max(axis=0).min() > 0
    assert cutout[..., 3].max(axis=1).min() > 0


def test_reader_processes_open_media_themselves(small_media):
    again = pickle.loads(pickle.dumps(small_media))
    np.testing.assert_array_equal(
        again.sound("sounds/T/dog.ogg.wav"), small_media.sound("sounds/T/dog.ogg.wav")
    )


def test_unknown_split_is_told(small_media):
    with pytest.raises(errors.UnknownNameError, match="split of stamps 'dev'; known: cross"):
        small_media.pools("dev")


def test_missing_media_say_what_fetches_them(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"fetch them with: launch/fetch_media\.sh"):
        Media(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m | {"format": 0}, r"is of format 0, wanted \d; delete it and fetch"),
        (lambda m: {}, "is damaged; delete it and fetch"),
        (lambda m: m | {"sha256": {"pictures/x.png": ""}}, r"lacks 1 files, e\.g\. pictures/x"),
    ],
)
def test_media_of_another_kind_are_told(tmp_path, change, told):
    path = made_up.write_media(tmp_path) / media_module.MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(errors.BadValueError, match=told):
        Media(tmp_path)


@pytest.mark.parametrize(
    ("file", "read"),
    [("pictures/T/dog.png.png", "cutout"), ("sounds/T/dog.ogg.wav", "sound")],
)
def test_damaged_file_is_named(tmp_path, file, read):
    media = Media(made_up.write_media(tmp_path))
    (tmp_path / file).write_bytes(b"odd")
    with pytest.raises(errors.BadValueError, match=f"{file} is no .*fetch it again"):
        getattr(media, read)(file)


def test_real_splits_are_apart_and_as_described(media):
    real = Media(media)
    pools = {split: real.pools(split) for split in SPLITS}
    assert_splits_are_apart(pools)
    assert [len(pools[split].pictures) for split in SPLITS] == [45, 45, 45, 9]
    everything = real.pools("train", weak=True, drawings=True)
    assert len(everything.pictures) == 53
