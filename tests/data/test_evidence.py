"""The table of what makes which sound."""

import csv

import numpy as np

from avs_jax.data import evidence
from avs_jax.data.evidence import ROWS, expand, make_table

GERMAN_SHEPHERD, GIANT_PANDA, SCHOOL_BUS, TABBY = 235, 388, 779, 281


def test_every_row_is_within_both_lists_of_classes():
    assert len(ROWS) == 166
    for name, row in ROWS.items():
        pictures = expand(row.pictures)
        assert 0 <= row.sound < evidence.NUM_SOUNDS, name
        assert 0 < row.weight <= 1, name
        assert pictures, name
        assert len(set(pictures)) == len(pictures), name
        assert min(pictures) >= 0, name
        assert max(pictures) < evidence.NUM_PICTURES, name
    assert len({row.sound for row in ROWS.values()}) == len(ROWS)


def test_facts():
    for sound, picture, makes_it in (
        ("Bark", GERMAN_SHEPHERD, True),
        ("Bark", TABBY, False),
        ("Meow", TABBY, True),
        ("Bus", SCHOOL_BUS, True),
        ("Moo", GIANT_PANDA, False),
    ):
        assert (picture in expand(ROWS[sound].pictures)) == makes_it, (sound, picture)
    assert not {"Speech", "Singing", "Crowd", "Wind", "Rain", "Silence"} & set(ROWS)
    assert ROWS["Music"].weight < ROWS["Musical instrument"].weight < ROWS["Guitar"].weight


def test_table_is_the_rows():
    table = make_table()
    assert table.members.shape == (1000, 166)
    column = list(ROWS).index("Dog")
    assert np.flatnonzero(table.members[:, column]).tolist() == list(range(151, 269))
    assert (table.sounds[column], table.weights[column]) == (ROWS["Dog"].sound, 1.0)


def test_names_are_those_of_the_real_class_map(media):
    with (media / "backbones/yamnet/assets/yamnet_class_map.csv").open() as file:
        names = {int(row["index"]): row["display_name"] for row in csv.DictReader(file)}
    assert {row.sound: name for name, row in ROWS.items()}.items() <= names.items()
