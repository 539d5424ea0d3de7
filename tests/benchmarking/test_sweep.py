"""Which shapes are swept, and the exponent that is fitted."""

import pytest

from avs_jax import errors
from avs_jax.benchmarking import sweep
from avs_jax.benchmarking.variant import Shape


def test_one_axis_moves_and_the_others_stay():
    found = sweep.shapes_of("seconds", [5, 10], Shape(1, 2, 224))
    assert found == [Shape(1, 5, 224), Shape(1, 10, 224)]


@pytest.mark.parametrize(
    "axis, values, costs, exponent",
    [
        ("size", [224, 448], [1.0, 4.0], 1.0),
        ("size", [224, 448], [1.0, 16.0], 2.0),
        ("batch", [1, 2, 4], [3.0, 6.0, 12.0], 1.0),
        ("seconds", [5, 10], [7.0, 7.0], 0.0),
    ],
)
def test_exponent_is_of_pixels_clips_or_seconds(axis, values, costs, exponent):
    shapes = sweep.shapes_of(axis, values, Shape(1, 5, 224))
    assert sweep.fit_exponent(axis, shapes, costs) == pytest.approx(exponent)


def test_numbers_of_devices_are_read():
    assert sweep.parse_counts("8,1,2") == [1, 2, 8]


@pytest.mark.parametrize("text", ["4", "2,2", "a,2", "0,2", "1,65", "1,,2", ""])
def test_numbers_of_devices_that_make_no_row_are_refused(text):
    with pytest.raises(errors.BadValueError, match=f"--scaling {text}: wanted two or more"):
        sweep.parse_counts(text)
