"""The language of the conversion tables, and that every table reads both ways."""

import re

import numpy as np
import pytest

from avs_jax import convert
from avs_jax.weights import torch_tables as tables


def test_placeholder_stands_for_digits():
    regex = tables.template_regex("layer{i}.{j}.conv{k}.weight")
    match = regex.fullmatch("layer3.12.conv1.weight")
    assert match.groupdict() == {"i": "3", "j": "12", "k": "1"}
    assert regex.fullmatch("layer3.a.conv1.weight") is None


def test_dots_are_literal():
    assert tables.template_regex("bn1.weight").fullmatch("bn1_weight") is None


def test_placeholder_with_a_regex_takes_only_that():
    regex = tables.template_regex("attn.{part:q|kv|proj}.bias")
    assert regex.fullmatch("attn.kv.bias")["part"] == "kv"
    assert regex.fullmatch("attn.sr.bias") is None


def test_repeated_placeholder_must_match_the_same():
    regex = tables.template_regex("a{i}.b{i}")
    assert regex.fullmatch("a1.b1")
    assert regex.fullmatch("a1.b2") is None


def test_template_is_filled():
    assert tables.fill_template("layer{i}_{j}/conv{k:1|2}", {"i": "3", "j": "0", "k": "2"}) == (
        "layer3_0/conv2"
    )


@pytest.mark.parametrize("transform", [tables.SAME, tables.CONV, tables.LINEAR, tables.SCALAR])
def test_transform_comes_back(transform):
    rank = {"conv": 4, "linear": 2, "scalar": 1}.get(transform.name, 3)
    shape = (1,) if transform.name == "scalar" else (2, 3, 4, 5)[:rank]
    array = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(transform.backward(transform.forward(array)), array)


def test_conv_puts_channels_last():
    assert tables.CONV.forward(np.zeros((5, 4, 3, 2))).shape == (3, 2, 4, 5)


def test_under_prefixes_names_and_paths_and_ignored():
    inner = tables.table([tables.conv("a{i}", "b{i}")], ignore={r"fc\..*": "reason"})
    outer = inner.under("net.", "part")
    assert outer.rules[0].source == "net.a{i}.weight"
    assert outer.rules[0].paths == ("params/part/b{i}/kernel",)
    assert any(re.fullmatch(pattern, "net.fc.bias") for pattern in outer.ignore)
    assert not any(re.fullmatch(pattern, "fc.bias") for pattern in outer.ignore)


def test_every_ignored_name_has_its_reason():
    for make_table in tables.TABLES.values():
        assert all(make_table().ignore.values())


@pytest.mark.parametrize("network", tables.TABLES)
def test_every_placeholder_of_a_source_is_in_each_target(network):
    """Or a rule could not be read backwards."""
    for rule in tables.TABLES[network]().rules:
        names = set(tables.placeholder_patterns(rule.source))
        for path in rule.paths:
            assert names == set(tables.placeholder_patterns(path)), rule


@pytest.mark.parametrize("network", tables.TABLES)
def test_table_covers_the_network_and_comes_back(network):
    rng = np.random.default_rng(0)
    flat = {
        path: np.broadcast_to(np.float32(rng.normal()), leaf.shape)  # one number each: no memory
        for path, leaf in convert.target_shapes(network).items()
    }
    state_dict = convert.to_torch(network, convert.unflatten(flat))
    back = convert.flatten(convert.from_torch(network, state_dict))
    assert set(back) == set(flat)
    assert all(np.array_equal(back[path], flat[path]) for path in flat)
