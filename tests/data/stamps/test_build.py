"""Stamps on disk: the same clips as those made when they are read."""

import cv2
import numpy as np
import pytest

from avs_jax import data, errors
from avs_jax.data.stamps import build as stamps
from avs_jax.data.stamps.source import StampsSource

CLIPS = (2, 1, 2, 1)


@pytest.fixture(scope="module")
def built(small_media, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    stamps.build(folder, stamps.make_config(small_media.folder, size=64, clips=CLIPS))
    return folder


@pytest.mark.parametrize(("split", "count"), [("train", 2), ("cross", 1)])
def test_built_clips_are_those_made_when_read(built, small_media, split, count):
    source = data.open_split("stamps", "ms3", split, built)
    live = StampsSource(small_media, split, count, size=64)
    assert len(source) == count
    for i in range(count):
        ours, theirs = source[i], live[i]
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_second_build_reuses_the_first(built, small_media):
    config = stamps.make_config(small_media.folder, size=64, clips=CLIPS)
    assert stamps.build(built, config).endswith("1.0.0")


@pytest.mark.parametrize("change", [{"seed": 1}, {"clips": (3, 1, 2, 1)}, {"weak": True}])
def test_other_settings_are_refused(built, small_media, change):
    settings = {"size": 64, "clips": CLIPS} | change
    with pytest.raises(errors.BadValueError, match="was built with"):
        stamps.build(built, stamps.make_config(small_media.folder, **settings))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"subset": "s4"}, "subset of stamps 's4'; known: avss, ms3"),
        ({"clips": (1, 2)}, "wanted 4 numbers"),
        ({"size": 16}, "at least 32 pixels"),
    ],
)
def test_request_that_makes_no_sense_is_told(settings, told):
    with pytest.raises(errors.InputError, match=told):
        stamps.make_config("media", **settings)


def test_missing_media_are_told(tmp_path):
    config = stamps.make_config(tmp_path / "none")
    with pytest.raises(errors.NotFoundError, match=r"fetch them with: launch/fetch_media\.sh"):
        stamps.build(tmp_path / "built", config)


def test_preview_is_drawn(small_media, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    arguments = ["--media", str(small_media.folder), "--preview", str(path), "--count", "2"]
    stamps.main([*arguments, "--size", "64"])
    sheet = cv2.imread(str(path))
    assert sheet.shape == (128, 320, 3)
    assert str(path) in capsys.readouterr().out
