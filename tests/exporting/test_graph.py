"""How axes of arrays become axes of tensors."""

import importlib

import numpy as np
import pytest


@pytest.fixture
def graph(onnx):
    return importlib.import_module("avs_jax.exporting.graph")


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((6, 4), (2, 3, 4), [([0], [0, 1]), ([1], [2])]),
        ((2, 3, 4), (6, 4), [([0, 1], [0]), ([2], [1])]),
        ((1, 4, 1), (4, 1, 1), [([1], [0])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((1, 1), (), []),
    ],
)
def test_reshaping_in_its_smallest_groups(graph, old, new, groups):
    assert graph.match_axes(old, new) == groups


def test_axes_without_a_place_lie_behind_the_one_before(graph):
    assert graph.place_missing([0, 3, 1, 2], 4) == (0, 2, 3, 1)
    assert graph.place_missing([3, 1], 4) == (0, 2, 3, 1)


def test_squashed_is_what_repeats_itself(graph):
    row = np.array([1.0, 2.0, 2.0])
    array = np.broadcast_to(row[:, None], (4, 3, 5))
    assert graph.squash(array).shape == (1, 3, 1)
    np.testing.assert_array_equal(np.broadcast_to(graph.squash(array), array.shape), array)
    almost = array.copy()
    almost[2, 1, 1] = 0
    assert graph.squash(almost).shape == almost.shape
