"""Names learnt for what is shown and for what is heard, compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.layers.names import NameMatcher, PictureNames, count_names

SURE = 30.0  # a logit
SHARE = np.log1p(np.exp(-1.0))  # of the odds, as it begins


def show(*names):
    """A row of cells, each sure of its name; 0: of none."""
    logits = np.zeros((1, 1, len(names), 1 + 3), np.float32)
    for i, name in enumerate(names):
        logits[0, 0, i, name] = SURE
    return logits


def match(shown, heard, train=False, **fields):
    """What the logits of a row of cells get."""
    matcher = NameMatcher(4, **fields)
    shown, heard = jnp.asarray(shown), jnp.array([heard], jnp.float32)
    variables = matcher.init(jax.random.key(0), shown, heard)
    rngs = {"dropout": jax.random.key(1)}
    maps, discount = matcher.apply(variables, shown, heard, train, rngs=rngs)
    assert maps.shape == (*shown.shape[:3], 4)
    return np.asarray(discount)[0, 0, :, 0], np.asarray(maps)


def test_what_is_shown_and_heard_gains_and_what_is_silent_loses():
    found, _ = match(show(1, 2, 3), [2.0, -3.0, 0.5])
    np.testing.assert_allclose(found, SHARE * np.array([2.0, -3.0, 0.5]), rtol=1e-4)


def test_a_cell_of_no_name_does_not_sound():
    found, _ = match(show(0), [5.0, 5.0, 5.0])
    np.testing.assert_allclose(found, -4.0 * SHARE, rtol=1e-4)


def test_a_cell_that_may_be_two_things_gets_what_is_expected():
    shown = show(1)
    shown[..., 2] = SURE
    found, _ = match(shown, [3.0, -1.0, 0.0])
    np.testing.assert_allclose(found, SHARE * 1.0, rtol=1e-4)


def test_no_name_is_surer_than_the_bound():
    found, _ = match(show(1, 2), [100.0, -100.0, 0.0])
    np.testing.assert_allclose(found, SHARE * np.array([8.0, -8.0]), rtol=1e-4)


def test_weight_scales_the_match():
    whole, _ = match(show(1, 2), [2.0, -3.0, 0.5])
    half, _ = match(show(1, 2), [2.0, -3.0, 0.5], weight=0.5)
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


def test_dropped_seconds_go_without_in_training_alone():
    dropped, maps = match(show(1, 2), [2.0, -3.0, 0.5], train=True, drop=1.0)
    assert not dropped.any()
    assert np.ptp(maps, axis=2).max() < 1e-6  # all cells alike
    kept, _ = match(show(1, 2), [2.0, -3.0, 0.5], drop=1.0)
    assert kept.all()


@pytest.mark.parametrize("tags, semantic", [(0, 0), (3, 0), (0, 3), (3, 4)])
def test_names_of_one_kind_alone_are_refused(tags, semantic):
    message = f"num_tags={tags} and num_semantic={semantic}: wanted as many"
    with pytest.raises(errors.BadValueError, match=message):
        count_names(tags, semantic)
    assert count_names(4, 4) == 4


def test_pictures_are_named_in_the_cells_of_the_finer_map():
    rng = np.random.default_rng(0)
    c4, c5 = (jnp.asarray(rng.normal(size=(2, n, n, 8)), jnp.float32) for n in (4, 2))
    net = PictureNames(5, hidden=8)
    variables = net.init(jax.random.key(0), c4, c5)
    assert net.apply(variables, c4, c5).shape == (2, 4, 4, 6)


def test_dropped_channels_are_those_of_a_whole_picture():
    ones = jnp.ones((2, 3, 3, 64))
    net = PictureNames(5, hidden=8, drop=0.5)
    variables = net.init(jax.random.key(0), ones, ones)
    named = net.apply(variables, ones, ones, True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(named, named[:, :1, :1] * np.ones_like(named), atol=1e-5)
    assert not np.allclose(named[0], named[1], atol=1e-3)
