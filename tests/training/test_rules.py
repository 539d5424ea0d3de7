"""Rules by name: the first full match decides, and a rule that decides nothing is an error."""

import jax.numpy as jnp
import pytest

from avs_jax import errors
from avs_jax.training.rules import apply_rules

PARAMS = {
    "backbone": {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "head": {"kernel": jnp.ones((2, 2))},
}


def test_first_matching_rule_wins():
    values = apply_rules([(".*/bias", 2.0), ("backbone/.*", 3.0)], PARAMS, 1.0, "rules")
    assert values == {
        "backbone/conv1/kernel": 3.0,
        "backbone/conv1/bias": 2.0,
        "head/kernel": 1.0,
    }


def test_rule_that_decides_nothing_is_an_error():
    with pytest.raises(errors.BadValueError, match=r"rules: the regex 'vggish/\.\*' decides no"):
        apply_rules([("vggish/.*", 2.0)], PARAMS, 1.0, "rules")


def test_rule_hidden_by_earlier_ones_is_an_error():
    with pytest.raises(errors.BadValueError, match="decides no parameter"):
        apply_rules([(".*", 1.0), ("head/.*", 2.0)], PARAMS, 1.0, "rules")


def test_rule_that_is_no_regex_is_an_error():
    with pytest.raises(errors.BadValueError, match="is not a regex"):
        apply_rules([("(", 1.0)], PARAMS, 1.0, "rules")
