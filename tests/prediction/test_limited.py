"""Films of visitors: what they get, what is refused, and that nothing is left behind."""

import json
import os
import pathlib
import threading
import time
import zipfile

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.media import video
from avs_jax.prediction import limited
from avs_jax.prediction.limited import Limits, Marker, StoppedError
from avs_jax.prediction.model import Model
from tests.media import film
from tests.test_predict import RedWhileLoud, make_film
from tests.weights.zoo import stand_in


@pytest.fixture(scope="module")
def model():
    """Marks what is red while it is loud, at the size of a small network."""
    model = Model(stand_in.make_loaded())
    model.forward = RedWhileLoud()
    return model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def mark(model, folder, path, stop=None, tell=lambda *_: None, **limits):
    marker = Marker(model, 2, Limits(**limits), folder)
    return marker.mark(str(path), 0.45, stop or threading.Event(), tell)


def test_visitor_gets_overlay_masks_and_timeline(tmp_path, folder, model):
    result = mark(model, folder, make_film(tmp_path / "my dog.mp4", seconds=2))
    assert video.probe(result.overlay).has_audio
    names = zipfile.ZipFile(result.masks).namelist()
    assert names == ["000000.500.png", "000001.000.png", "000001.500.png", "000001.750.png"]
    written = json.loads(pathlib.Path(result.timeline).read_text())
    assert written == result.described
    assert [second["marked"][0]["share"] > 0.1 for second in written["seconds"]] == [False, True]
    files = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert files == ["my dog_masks.zip", "my dog_overlay.mp4", "my dog_timeline.json"]


def test_cancelled_film_leaves_nothing(tmp_path, folder, model):
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        mark(model, folder, make_film(tmp_path / "a.mp4", seconds=2), stop)
    assert list(folder.iterdir()) == []


def test_failing_network_leaves_nothing(tmp_path, folder, model, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda *_: np.full((1, 2, 32, 32, 1), np.nan, "f"))
    with pytest.raises(errors.BadValueError, match="NaN"):
        mark(model, folder, make_film(tmp_path / "a.mp4", seconds=2))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "limits", "message"),
    [
        ({"seconds": 3}, {"max_seconds": 2}, "'a.mp4' is 3.0 s long; 2 s are allowed"),
        ({}, {"max_megapixels": 0.001}, "'a.mp4' is 64 x 48, 0.0 megapixels; 0.001"),
        ({"sound": None}, {}, "'a.mp4' has no audio track; wanted a film with sound"),
        ({}, {"max_minutes": 1e-9}, "allowed here were over"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_in_a_line(
    tmp_path, folder, model, made, limits, message
):
    path = make_film(tmp_path / "a.mp4", **{"seconds": 1} | made)
    with pytest.raises(errors.BadValueError, match=message) as caught:
        mark(model, folder, path, **limits)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


def test_film_that_is_longer_than_it_says_ends_at_the_limit(tmp_path, folder, model, monkeypatch):
    path = make_film(tmp_path / "a.mp4", seconds=4)
    monkeypatch.setattr(Marker, "_check_length", lambda *_: None)
    with pytest.raises(errors.BadValueError, match="longer than the 2 s"):
        mark(model, folder, path, max_seconds=2)
    assert list(folder.iterdir()) == []


def test_visitor_is_told_what_is_done_and_left(tmp_path, folder, model, monkeypatch):
    monkeypatch.setattr(limited, "_TOLD_EVERY", 0.0)
    told = []
    tell = lambda part, words: told.append((part, words))  # noqa: E731
    mark(model, folder, make_film(tmp_path / "a.mp4", seconds=3), tell=tell)
    parts = [part for part, _ in told]
    assert parts == sorted(parts) and parts[-1] == 1.0
    assert told[5][1].startswith("2 of 3 s of film, about ") and told[5][1].endswith(" s left")


def test_full_folder_takes_no_film(tmp_path, folder, model):
    (folder / "other").mkdir()
    (folder / "other" / "film.mp4").write_bytes(bytes(2000))
    with pytest.raises(errors.BadValueError, match="no room"):
        mark(model, folder, make_film(tmp_path / "a.mp4", seconds=1), max_gigabytes=1e-6)


def test_old_files_go_and_young_ones_stay(folder, model):
    for name, age in (("old", 3700), ("young", 3500)):
        (folder / name).mkdir()
        os.utime(folder / name, times=(time.time() - age,) * 2)
    Marker(model, 1, Limits(keep_minutes=60), folder).sweep()
    assert [path.name for path in folder.iterdir()] == ["young"]


def test_only_files_of_the_folder_are_removed(tmp_path, folder, model):
    outside = tmp_path / "film.mp4"
    inside = folder / "0123" / "film.mp4"
    inside.parent.mkdir()
    for path in (outside, inside):
        path.write_bytes(b"film")
    marker = Marker(model, 1, Limits(), folder)
    for path in (None, str(outside), str(inside), str(folder)):
        marker.forget(path)
    assert outside.exists() and folder.exists() and not inside.parent.exists()


def test_folder_of_visitors_goes_with_the_program():
    with limited.kept_folder() as folder:
        film.write_film(folder / "a.mp4", seconds=1)
    assert not folder.exists() and not folder.parent.exists()
