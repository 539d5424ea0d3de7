"""Paths of local folders and of buckets."""

import pytest
from etils import epath

from avs_jax import errors, paths


def test_a_bucket_is_not_a_folder_of_the_working_directory(bucket):
    """As `epath.Path.resolve` has it."""
    assert str(paths.absolute(f"{bucket}/run")) == f"{bucket}/run"


def test_a_local_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.absolute("run") == epath.Path(tmp_path).resolve() / "run"
    assert not paths.in_bucket(tmp_path)


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(errors.BadValueError, match=r"hdfs://; known: gs://, s3://"):
        paths.absolute("hdfs://host/run")


def test_a_scheme_whose_package_is_missing_names_the_package(no_bucket_client):
    with pytest.raises(errors.BadValueError, match=r"gs:// needs the package gcsfs .*pip install"):
        paths.absolute("gs://bucket/run")
