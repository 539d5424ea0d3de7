"""Clips made when they are read, in the place of a data set."""

import pickle
import shutil

import numpy as np
import pytest

from avs_jax import data, errors
from avs_jax.data import pipeline, transforms
from avs_jax.data.stamps.source import CLIPS, StampsSource, parse_slice


def test_example_keeps_the_contract(small_media):
    example = StampsSource(small_media, "train", 3, size=64)[0]
    assert example["frames"].shape == (5, 64, 64, 3)
    assert example["frames"].dtype == np.uint8
    assert example["waveform"].shape == (80_000,)
    assert np.abs(example["waveform"]).max() <= 1
    for name in ("label", "objects", "instances"):
        assert example[name].shape == (5, 64, 64)
    assert example["label_mask"].all()
    assert example["frame_mask"].all()
    assert example["id"] == "stamps/train/000000"


def test_media_folder_opens_as_a_data_set(small_media):
    source = data.open_split("stamps", "ms3", "test[:4]", small_media.folder)
    assert len(source) == 4
    assert len(data.open_split("stamps", "avss", "cross", small_media.folder)) == CLIPS["cross"]
    assert source[-1]["id"] == "stamps/test/000003"
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_batches_are_made(small_media, workers):
    source = StampsSource(small_media, "train", 6, size=64)
    batches = pipeline.train_batches(
        source,
        batch_size=2,
        seed=0,
        transforms=[transforms.Drop(("objects", "num_objects", "instances"))],
        num_threads=0,
        num_workers=workers,
    )
    batch = next(batches)
    assert batch["frames"].shape == (2, 5, 64, 64, 3)


def test_flip_turns_instances_too(small_media):
    example = StampsSource(small_media, "train", 1, size=64)[0]
    assert set(transforms.MASKS) >= {"label", "objects", "instances"}
    assert set(example) >= set(transforms.MASKS)


def test_source_travels_to_other_processes(small_media):
    source = StampsSource(small_media, "train", 2, size=64)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["frames"], source[1]["frames"])


def test_folder_without_media_says_what_fetches_them(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"launch/fetch_media\.sh"):
        data.open_split("stamps", "ms3", "train", tmp_path)


def test_media_that_lost_files_are_told_at_once(small_media, tmp_path):
    shutil.copytree(small_media.folder, tmp_path / "media")
    (tmp_path / "media" / "backgrounds" / "0.png").unlink()
    with pytest.raises(errors.BadValueError, match="lacks 1 files"):
        data.open_split("stamps", "ms3", "train", tmp_path / "media")


def test_slices():
    assert parse_slice("test", {"test": 9}) == ("test", 9)
    assert parse_slice("test[:3]", {"test": 9}) == ("test", 3)
    assert parse_slice("test[:30]", {"test": 9}) == ("test", 9)
    with pytest.raises(errors.UnknownNameError, match="split of stamps 'dev'; known: test"):
        parse_slice("dev", {"test": 9})
    with pytest.raises(errors.BadValueError, match=r"is no slice"):
        parse_slice("test[2:]", {"test": 9})
