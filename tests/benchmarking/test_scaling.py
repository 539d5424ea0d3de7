"""Weak scaling: what the compiled step of a small model holds and sends on 1, 2 and 8 devices."""

import jax
import ml_collections
import pytest

from avs_jax import errors, models
from avs_jax.benchmarking import plan, scaling

COUNTS = (1, 2, 8)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    # Wide enough for one array (64 x 512) that is worth being split.
    config = plan.read_fields("tests/faults/config.py:steps=4", ["model.width=512", "data.size=16"])
    yield [scaling.measure(config, way, n, clips=1) for way in scaling.WAYS for n in COUNTS]
    del models.MODELS[config.model.name]  # which the config made known, for programs


def pick(rows, way, name):
    return [row[name] for row in rows if row["way"] == way]


@pytest.mark.parametrize("way", scaling.WAYS)
def test_what_a_device_holds_and_sends_does_not_grow(rows, way):
    growth = scaling.find_growth(rows)
    assert {name for there, name in growth if there == way} == set(scaling.SIZES)
    for name in scaling.SIZES:
        assert growth[way, name] <= 1 + scaling.TOLERANCE, (way, name, pick(rows, way, name))


@pytest.mark.parametrize("way", scaling.WAYS)
def test_one_device_sends_nothing_and_several_their_gradients(rows, way):
    alone, *several = pick(rows, way, "collective")
    # Adam's two moments beside the numbers that learn.
    learning = pick(rows, way, "state")[0] / 3
    assert min(several) > 0.9 * learning
    # Sums over one device, which jax.pmap asks for, XLA keeps in its program (jax 0.10).
    assert (alone == 0) == (way != "pmap")


def test_a_state_that_is_split_shrinks(rows):
    whole, *parts = pick(rows, "sharded, fsdp=N", "state")
    assert whole == pick(rows, "sharded, fsdp=1", "state")[-1]
    assert parts == sorted(parts, reverse=True) and parts[-1] < 0.4 * whole


def test_growth_is_from_the_fewest_of_several_devices():
    row = {"way": "pmap", "state": 8, "temporary": 100, "collective": 0}
    rows = [row | {"devices": 8, "collective": 12, "temporary": 400}]
    rows += [row | {"devices": 2, "collective": 10, "temporary": 200}, row | {"devices": 1}]
    growth = scaling.find_growth(rows)
    assert growth == {
        ("pmap", "state"): 1.0,
        ("pmap", "temporary"): 2.0,
        ("pmap", "collective"): 1.2,
    }
    assert scaling.find_growth([row | {"devices": 1}]) == {}


def test_more_devices_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda platform: [None])
    with pytest.raises(
        errors.BadValueError, match="1 CPU devices to compile for, wanted 2; set XLA_"
    ):
        scaling.measure(ml_collections.ConfigDict(), "pmap", 2, 1)


def test_a_row_has_a_cell_for_each_title(rows):
    title, _ = scaling.HEADER.splitlines()
    line = scaling.make_row(rows[0])
    assert line.count("|") == title.count("|")
    assert line.startswith("| small_network, small_resnet | sharded, fsdp=1 | 1 | 1 | ")
