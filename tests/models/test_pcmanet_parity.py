"""PCMANet against the published code: activations, masks, losses, gradients, running statistics.

The expected numbers come from the PyTorch implementation with weights rebuilt from names
(tests/parity/fill.py).
"""

import re

import numpy as np
import pytest

from tests.parity import fill, pcmanet

pytestmark = pytest.mark.slow  # whole networks at 224 x 224, with gradients


@pytest.fixture(scope="module", params=pcmanet.NETWORKS)
def evaluated(request):
    """(fixture, what our network gives in evaluation mode); one network at a time in memory."""
    return request.param, pcmanet.evaluate(request.param)


@pytest.fixture(scope="module")
def trained():
    """What our ResNet-50 network gives in training mode."""
    return pcmanet.train()


def test_every_intermediate_equals_the_published_codes(evaluated):
    fixture, ours = evaluated
    entries, expected = ours["entries"], fill.expected(fixture)
    about, wrong = pcmanet.companion(fixture), []
    assert set(expected) == set(entries)
    for name, values in expected.items():
        assert list(entries[name].shape) == about[name]["shape"], name
        steps = tuple(slice(None, None, step) for step in about[name]["stride"])
        # Eight times what the reference deviates from itself in float64.
        tolerance = 1e-4 * about[name]["std"] + 1e-5
        if name == "losses":
            tolerance = 1e-4
        if name.startswith("mask"):
            tolerance = 0
        worst = np.abs(entries[name][steps].astype(np.float64) - values).max()
        if not worst <= tolerance:
            wrong.append(f"{name}: {worst:.3g} > {tolerance:.3g}")
    assert not wrong, wrong  # in the order of the computation: look at the first


def wrong_gradients(state, name, tolerance=5e-3):
    """Norms of all gradients, and those stored whole, against the reference's, relative."""
    about, stored, wrong = pcmanet.companion(name), fill.expected(name), []
    for entry, norm in about["grad_norm"].items():
        if norm is None:  # takes no part in the reference's graph
            if entry in state and np.any(state[entry]):
                wrong.append(f"{entry}: not zero")
            continue
        ours = state[entry]
        length = np.linalg.norm(ours.astype(np.float64))
        # 0: exactly, or a bias in front of a batch normalisation, which is rounding only.
        if abs(length - norm) > max(tolerance * norm, 1e-6):
            wrong.append(f"{entry}: norm {length:.6g}, not {norm:.6g}")
        if (expected := stored.get(f"grad/{entry}")) is not None:
            ours = ours if ours.shape == expected.shape else ours[::5, ::7]
            difference = np.linalg.norm(ours - expected)
            if difference > max(tolerance * np.linalg.norm(expected), 1e-6):
                wrong.append(f"{entry}: differs by {difference:.3g}")
    return wrong


def test_gradients_in_evaluation_mode_equal_the_published_codes(evaluated):
    fixture, ours = evaluated
    name = f"{fixture}_eval_grads"
    np.testing.assert_allclose(ours["losses"][:4], pcmanet.companion(name)["losses"], atol=1e-4)
    assert not wrong_gradients(ours["state"], name)


def test_gradients_in_training_mode_equal_the_published_codes(trained):
    name, about = "pcmanet_resnet50_s4_train", pcmanet.companion("pcmanet_resnet50_s4_train")
    np.testing.assert_allclose(trained["losses"][:4], about["losses"], atol=1e-4)
    np.testing.assert_allclose(trained["outputs"]["kept"], about["per"], atol=1e-6)
    assert not wrong_gradients(trained["state"], name)


def test_logits_in_training_mode_equal_the_published_codes(trained):
    expected = fill.expected("pcmanet_resnet50_s4_train")
    for k in pcmanet.STAGES:
        logits = pcmanet.maps(trained["outputs"]["stage_logits"][k - 1])
        reference = expected[f"output_conv{k}"]
        tolerance = 1e-4 * reference.std() + 1e-5
        np.testing.assert_allclose(logits, reference, rtol=0, atol=tolerance)


def test_running_statistics_equal_the_published_codes_up_to_the_variances_bias(trained):
    fixture, sizes = "pcmanet_resnet50_s4", {"1": 56, "2": 28, "3": 14, "4": 7}
    unused = re.compile(r"resnet\.layer[34]_2\..*|gf4\.seq2\..*|.*num_batches_tracked")
    for entry, reference in fill.expected(f"{fixture}_train").items():
        name = entry.removeprefix("buffer/")
        if name == entry or unused.fullmatch(name):
            continue
        ours, before = trained["state"][name], fill.weight(name, reference.shape)
        if name.endswith("running_var") and not name.startswith("resnet"):
            # PyTorch's running variance is the unbiased one, Flax's the biased one.
            stage = next(c for c in name if c.isdigit())
            count = 10 * sizes[stage] ** 2
            ours = before * 0.9 + (ours - before * 0.9) * count / (count - 1)
        np.testing.assert_allclose(ours, reference, atol=5e-6, err_msg=name)
