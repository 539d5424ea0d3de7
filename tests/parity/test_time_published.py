"""The program that times ours beside the published code, as far as it goes without that code."""

import numpy as np
import pytest

from avs_jax import errors
from tests.parity import time_published
from tests.parity.published import SOURCES, find_code


@pytest.mark.parametrize("network", SOURCES)
def test_a_folder_without_the_code_is_refused_with_where_to_clone_it(network, tmp_path):
    with pytest.raises(errors.NotFoundError, match="a clone of https"):
        time_published.main([network, "--code", str(tmp_path)])


def test_the_code_is_found_where_it_is(tmp_path):
    file = tmp_path / "CATR" / "model" / "PVT_AVSModel.py"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_code("catr_pvt", tmp_path) == tmp_path / "CATR"


def test_peak_memory_is_that_of_what_ran_since():
    held = np.ones(30_000_000)  # 240 MB
    before = time_published.peak_megabytes()
    del held
    time_published.forget_peak()
    assert time_published.peak_megabytes() < before - 200
