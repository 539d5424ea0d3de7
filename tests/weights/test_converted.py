"""Converted weights on disk, and what is noticed about them."""

import gc
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.weights import converted
from tests.weights.conftest import SOURCE


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_saved_is_loaded(directory, resnet18):
    loaded, _ = converted.load_converted(directory)
    assert_same(loaded, resnet18)


def test_loaded_arrays_stay_on_the_host(directory):
    loaded, _ = converted.load_converted(directory)
    assert {type(leaf) for leaf in jax.tree.leaves(loaded)} == {np.ndarray}


def test_provenance_tells_source_network_and_normalization(directory):
    _, provenance = converted.load_converted(directory)
    assert provenance["network"] == "resnet18"
    assert provenance["source"] == SOURCE
    assert provenance["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert provenance["parameters"] == 11_176_512


def test_sound_has_no_normalization(tmp_path):
    rng = np.random.default_rng(0)
    tiny = {"params": {"dense": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)}}}
    provenance = converted.save_converted(tmp_path / "sound", "vggish", tiny, SOURCE)
    assert provenance["normalization"] is None


def test_folder_that_cannot_be_written_is_refused(tmp_path, resnet18):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadValueError, match="cannot write to"):
        converted.save_converted(tmp_path / "file" / "out", "resnet18", resnet18, SOURCE)


def test_weights_are_not_overwritten(directory, resnet18):
    with pytest.raises(errors.BadValueError, match="holds converted weights already; remove it"):
        converted.save_converted(directory, "resnet18", resnet18, SOURCE)


def test_folder_without_weights_is_refused_with_the_command(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"python -m avs_jax.convert NETWORK FILE"):
        converted.load_converted(tmp_path / "nothing")


def test_conversion_cut_short_is_not_taken(directory):
    (directory / "provenance.json").unlink()
    with pytest.raises(errors.NotFoundError, match="no converted weights"):
        converted.load_converted(directory)


# Tensorstore complains a second time about files it cannot read, when its futures are collected.
orbax_complains = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def refuse(directory, message):
    with pytest.raises(errors.BadValueError, match=message):
        converted.load_converted(directory)
    gc.collect()  # here, where the complaints are expected, not in some later test


@orbax_complains
def test_changed_bytes_are_noticed(directory):
    files = [path for path in (directory / "weights").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    largest.write_bytes(content)
    refuse(directory, "convert them again")


@orbax_complains
def test_missing_data_is_a_clear_error(directory):
    for path in (directory / "weights").rglob("*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            path.unlink()
    refuse(directory, "cannot be read")


def test_changed_checksum_names_the_array(directory):
    provenance = json.loads((directory / "provenance.json").read_text())
    provenance["crc32"]["params/conv1/kernel"] += 1
    (directory / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(errors.BadValueError, match=r"1 arrays .* e.g. params/conv1/kernel"):
        converted.load_converted(directory)


def test_pytorch_is_not_imported():
    program = "import avs_jax.convert, sys; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
