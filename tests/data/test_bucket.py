"""A data set in a bucket is read as if it were here."""

import pathlib

import numpy as np
import pytest
from etils import epath

from avs_jax import data, errors
from avs_jax.data import bucket as bucket_lib
from tests.data.tiny import build_tiny


@pytest.fixture
def uploaded(bucket, tmp_path, monkeypatch):
    """-> (a tiny data set here, its copy in the bucket)"""
    monkeypatch.setenv("AVS_JAX_DATA_CACHE", str(tmp_path / "cache"))
    here = pathlib.Path(build_tiny(tmp_path / "data", clips=(4, 2, 2)))
    there = epath.Path(bucket) / "data"
    for path in here.rglob("*"):
        if path.is_file():
            (there / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())
    return here, there


def test_clips_of_a_bucket_are_those_that_were_put_there(uploaded):
    here, there = (data.open_split("sounding_shapes", "ms3", "train", x) for x in uploaded)
    assert len(here) == len(there) == 4
    for key, value in here[3].items():
        np.testing.assert_array_equal(there[3][key], value)


def test_only_the_split_in_use_is_copied(uploaded):
    data.open_split("sounding_shapes", "ms3", "validation[:1]", str(uploaded[1]))
    version = uploaded[1] / "sounding_shapes" / "ms3" / "1.0.0"
    names = {p.name for p in bucket_lib.local_folder(version).iterdir()}
    assert {n for n in names if "array_record" in n} == {
        n.name for n in version.iterdir() if "-validation." in n.name
    }


def test_what_is_here_is_not_copied_again_unless_its_size_differs(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AVS_JAX_DATA_CACHE", str(tmp_path))
    folder = epath.Path(bucket) / "x"
    for content, expected in (("one", "one"), ("two", "one"), ("three", "three")):
        (folder / "a.json").write_text(content)
        here = bucket_lib.copy_here(folder, ["a.json"])
        assert (here / "a.json").read_text() == expected


def test_no_data_set_in_a_bucket_says_how_to_build_it(bucket):
    with pytest.raises(errors.NotFoundError, match="no data directory gs://bucket/data; build it"):
        data.open_split("sounding_shapes", "ms3", "train", f"{bucket}/data")
