"""The class table and palette of AVSBench-semantic."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from avs_jax import errors
from avs_jax.data.avsbench import classes

# A folder with files of the release (label2idx.json, samples/), where someone has them.
RELEASE = pathlib.Path(os.environ.get("AVSBENCH_RELEASE", "/nonexistent"))
needs_release = pytest.mark.skipif(not RELEASE.exists(), reason="AVSBENCH_RELEASE is not set")


def test_names_are_71_and_distinct():
    assert len(set(classes.CLASS_NAMES)) == classes.NUM_CLASSES == 71


@pytest.mark.parametrize(
    ("name", "index"),
    [("background", 0), ("boy", 9), ("clarinet", 14), ("man", 41), ("mower", 45), ("woman", 70)],
)
def test_ids_known_from_released_labels(name, index):
    assert classes.class_id(name) == index


def test_unknown_class_lists_known_ones():
    with pytest.raises(errors.UnknownNameError, match=r"'womna'; known: accordion, airplane"):
        classes.class_id("womna")


@pytest.mark.parametrize(
    ("index", "colour"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (3, (128, 128, 0)),
        (14, (64, 128, 128)),
        (70, (32, 128, 128)),
    ],
)
def test_palette_colour(index, colour):
    assert tuple(classes.PALETTE[index]) == colour


def test_palette_colours_differ():
    assert len(np.unique(classes.PALETTE, axis=0)) == 71


def test_every_id_survives_its_colour():
    label = np.arange(71, dtype=np.uint8)[None]
    back, unknown = classes.decode_palette(classes.encode_palette(label))
    np.testing.assert_array_equal(back, label)
    assert unknown.shape == (0, 3)


def test_colour_beside_the_palette_is_background_and_reported():
    picture = np.array([[[128, 0, 0], [129, 0, 0], [255, 255, 255]]], np.uint8)
    label, unknown = classes.decode_palette(picture)
    assert label.tolist() == [[1, 0, 0]]
    assert unknown.tolist() == [[129, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("girl_guitar", ("girl", "guitar")),
        ("frying-food", ("frying-food",)),
        ("h orse", ("horse",)),
        ("man_off-the-screen", ("man",)),
        ("background", ()),
        ("dog_barking", ("dog",)),
        ("playing_tabla", ("tabla",)),
        ("coyote_howling", ()),
        ("", ()),
    ],
)
def test_sources_of_a_category(category, expected):
    assert classes.sources(category) == expected


@needs_release
def test_names_equal_the_released_table():
    released = json.loads((RELEASE / "label2idx.json").read_text())
    assert {name: index + 1 for index, name in enumerate(classes.CLASS_NAMES)} == released


@needs_release
def test_palette_decodes_the_released_colours():
    picture = np.asarray(Image.open(RELEASE / "samples/v2/0.png"))
    label, unknown = classes.decode_palette(picture)
    assert len(unknown) == 0
    assert set(np.unique(label)) == {0, classes.class_id("clarinet")}
