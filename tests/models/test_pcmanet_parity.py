"""PCMANet against the published code: activations, masks, losses, gradients, running statistics.

The expected numbers come from the PyTorch implementation with weights rebuilt from names
(tests/parity/fill.py). Layout there: maps [frames channels h w], tokens [frames tokens channels].
"""

import fnmatch
import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax import convert, models
from tests.parity import fill

pytestmark = pytest.mark.slow  # whole networks at 224 x 224, with gradients

NETWORKS = {  # fixture -> fields of the model
    "pcmanet_resnet50_s4": {"backbone": "resnet50", "groups": 4},
    "pcmanet_pvt_s4": {"backbone": "pvt_v2_b5", "groups": 8},
}
STAGES = (1, 2, 3, 4)


def companion(name):
    return json.loads((fill.FOLDER / "expected" / f"{name}.json").read_text())


def variables_of(fixture, gains=None):
    """The filled weights, converted as a published file would be."""
    state = {f"audio_backbone.{name}": x for name, x in fill.weights("vggish").items()}
    if gains is None:
        state |= fill.weights(fixture)
    for name, shape in fill.manifest(fixture).items() if gains is not None else ():
        factor = [f for pattern, f in gains.items() if fnmatch.fnmatchcase(name, pattern)]
        state[name] = fill.weight(name, shape) * np.float32(factor[0] if factor else 1)
    return convert.from_torch("pcmanet", state, **NETWORKS[fixture])


def to_torch(fixture, tree):
    """Parameters or gradients, and statistics -> by the reference's names, in its layout."""
    state = convert.to_torch("pcmanet", tree, **NETWORKS[fixture])
    # `to_torch` writes torchvision's names; the reference has layers 3 and 4 twice.
    return {re.sub(r"^(resnet\.layer[34])\.", r"\1_1.", name): x for name, x in state.items()}


def keep_statistics(call, args, kwargs, context):
    """Picture backbone in evaluation mode while the decoder trains, as in the training fixture."""
    if context.module.name == "backbone" and context.method_name == "__call__":
        kwargs = {**kwargs, "train": False}
    return call(*args, **kwargs)


def run(fixture, variables, frames, log_mel, target, *, train=False):
    """One jit: outputs, intermediates, new statistics, losses, gradients of all but VGGish.

    `target` bool[b 224 224]: of the first frame of each clip, the only labelled one in S4.
    """
    model = models.get_model("pcmanet", **NETWORKS[fixture])
    loss = models.get_loss("pcmanet")
    b, t = frames.shape[:2]
    first = np.arange(t) == 0
    batch = {
        "label": np.where(first[:, None, None], target[:, None], False).astype(np.int32),
        "label_mask": np.broadcast_to(first, (b, t)),
        "frame_mask": np.ones((b, t), bool),
    }

    def total(learnt, frozen, statistics, frames, log_mel, batch):
        with nn.intercept_methods(keep_statistics):
            outputs, state = model.apply(
                {"params": {**learnt, "audio_backbone": frozen}, "batch_stats": statistics},
                frames,
                log_mel,
                train=train,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=True,
            )
        value, parts = loss(outputs, batch)
        return value, (parts, outputs, state)

    learnt = dict(variables["params"])
    frozen = learnt.pop("audio_backbone")
    call = jax.jit(jax.value_and_grad(total, has_aux=True))
    (value, (parts, outputs, state)), gradients = call(
        learnt, frozen, variables["batch_stats"], frames, log_mel, batch
    )
    losses = [float(parts[f"output{k}"]) for k in STAGES]
    zeros = {"audio_backbone": jax.tree.map(jnp.zeros_like, frozen)}
    return {
        "losses": np.array([*losses, float(value)]),
        "outputs": outputs,
        "sown": traverse_util.flatten_dict(state["intermediates"], sep="/"),
        "state": to_torch(
            fixture, {"params": gradients | zeros, "batch_stats": state["batch_stats"]}
        ),
    }


@pytest.fixture(scope="module", params=NETWORKS)
def evaluated(request):
    """(fixture, what the network gives in evaluation mode)."""
    frames = fill.uniform("pcmanet/frames", (5, 3, 224, 224), -2, 2)
    log_mel = fill.uniform("pcmanet/audio", (5, 1, 96, 64), -4, 1)
    target = fill.uniform("pcmanet/mask", (1, 224, 224)) > 0.5
    inputs = np.moveaxis(frames, 1, -1)[None], log_mel[None, :, 0]
    return request.param, run(request.param, variables_of(request.param), *inputs, target)


@functools.cache
def trained():
    """The training fixture: batch statistics in the decoder, two clips of blocky frames."""
    fixture = "pcmanet_resnet50_s4"
    low = fill.uniform("pcmanet/a_train_frames", (10, 3, 14, 14), -2, 2)
    frames = low.repeat(16, axis=2).repeat(16, axis=3)
    frames = np.moveaxis(frames, 1, -1).reshape(2, 5, 224, 224, 3)
    log_mel = fill.uniform("pcmanet/a_train_audio", (10, 1, 96, 64), -4, 1)
    target = fill.uniform("pcmanet/a_train_mask", (2, 224, 224)) > 0.5
    variables = variables_of(fixture, companion(f"{fixture}_train")["gains"])
    return run(fixture, variables, frames, log_mel.reshape(2, 5, 96, 64), target, train=True)


# ---------------------------------------------------------------- activations


def maps(x):
    """[n h w c] or [b t h w c] -> [frames c h w]."""
    x = np.asarray(x)
    return np.moveaxis(x.reshape(-1, *x.shape[-3:]), -1, 1)


def tokens(x):
    """[b t s d] or [n h w d] -> [frames tokens d]."""
    x = np.asarray(x)
    return x.reshape(5, -1, x.shape[-1])


def resnet_entries(sown):
    def block(name):
        return maps(sown[f"backbone/{name}/__call__"][0])

    conv1 = maps(sown["backbone/conv1/__call__"][0])
    normed = sown["backbone/bn1/__call__"][0]
    pooled = nn.max_pool(nn.relu(normed), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    entries = {"resnet.conv1": conv1, "resnet.maxpool": maps(pooled)}
    for name, ours, last in (
        ("layer1", "layer1", 2),
        ("layer2", "layer2", 3),
        ("layer3_1", "layer3", 5),
        ("layer4_1", "layer4", 2),
    ):
        entries[f"resnet.{name}.0"] = block(f"{ours}_0")
        entries[f"resnet.{name}"] = block(f"{ours}_{last}")
    return entries


def pvt_entries(sown):
    def inner(name):
        return tokens(sown[f"backbone/{name}/__call__"][0])

    entries = {
        "encoder_backbone.patch_embed1.proj": maps(sown["backbone/patch_embed1/proj/__call__"][0])
    }
    for name in ("patch_embed1.norm", "patch_embed2.norm", "block1.0.attn", "block1.0.mlp"):
        entries[f"encoder_backbone.{name}"] = inner(
            name.replace(".norm", "/norm").replace("block1.0.", "block1_0/")
        )
    for i, j in ((1, 0), (1, 2), (2, 0), (2, 5), (3, 0), (3, 20), (3, 39), (4, 0), (4, 2)):
        entries[f"encoder_backbone.block{i}.{j}"] = inner(f"block{i}_{j}")
    for i, pyramid in enumerate(sown["backbone/__call__"][0]):
        entries[f"encoder_backbone.{i}"] = maps(pyramid)
    return entries


def decoder_entries(outputs, sown):
    def called(name):
        return sown[f"{name}/__call__"][0]

    entries = {
        "audio_feature": called("audio_backbone"),
        "aud_fc1": called("audio_fc"),
        "per": outputs["kept"],
    }
    for k in STAGES:
        sound, pixels = (np.asarray(x).reshape(5, -1, 256) for x in called(f"qsca{k}/attention"))
        guidance, handed_on = called(f"qsca{k}")
        entries |= {
            f"conv{k}": maps(called(f"conv{k}")),
            f"avga{k}.seq1": maps(called(f"avga{k}/seq1")),
            f"avga{k}.fc": sown[f"avga{k}/guide"][0],
            f"avga{k}": maps(called(f"avga{k}")),
            f"qsca{k}.gap": maps(sown[f"qsca{k}/pooled"][0]),
            f"qsca{k}.aud_fc": called(f"qsca{k}/audio_fc"),
            f"qsca{k}.attn.to_patch_embedding": tokens(called(f"qsca{k}/embed")),
            f"qsca{k}.attn.transformer": np.concatenate([sound, pixels], axis=1),
            f"qsca{k}.attn.0": maps(sown[f"qsca{k}/map"][0]),
            f"qsca{k}.attn.1": sound[:, 0],
            f"qsca{k}.0": maps(guidance),
            f"qsca{k}.1": handed_on,
            f"gf{k}": maps(called(f"gf{k}")),
            f"output_conv{k}": maps(outputs["stage_logits"][k - 1]),
            f"output{k}": maps(outputs["outputs"][k - 1]),
        }
    for k, mask in zip((4, 3, 2), outputs["masks"], strict=True):
        entries[f"mask{k}"] = maps(mask[..., None]).astype(np.uint8)
    return entries


def test_every_intermediate_equals_the_published_codes(evaluated):
    fixture, ours = evaluated
    entries = decoder_entries(ours["outputs"], ours["sown"]) | {"losses": ours["losses"]}
    entries |= (resnet_entries if "resnet" in fixture else pvt_entries)(ours["sown"])
    about, wrong = companion(fixture), []
    expected = fill.expected(fixture)
    assert set(expected) == set(entries)
    for name, values in expected.items():
        array = np.asarray(entries[name])
        assert list(array.shape) == about[name]["shape"], name
        array = array[tuple(slice(None, None, step) for step in about[name]["stride"])]
        # Eight times what the reference deviates from itself in float64.
        tolerance = 0 if name.startswith("mask") else 1e-4 * about[name]["std"] + 1e-5
        if name == "losses":
            tolerance = 1e-4
        worst = np.abs(array.astype(np.float64) - values).max()
        if not worst <= tolerance:
            wrong.append(f"{name}: {worst:.3g} > {tolerance:.3g}")
    assert not wrong, wrong  # in the order of the computation: look at the first


# ---------------------------------------------------------------- gradients


def wrong_gradients(state, name, tolerance=5e-3):
    """Norms of all gradients, and those stored whole, against the reference's, relative."""
    about, stored, wrong = companion(name), fill.expected(name), []
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
    np.testing.assert_allclose(ours["losses"][:4], companion(name)["losses"], atol=1e-4)
    assert not wrong_gradients(ours["state"], name)


def test_gradients_in_training_mode_equal_the_published_codes():
    name, ours = "pcmanet_resnet50_s4_train", trained()
    np.testing.assert_allclose(ours["losses"][:4], companion(name)["losses"], atol=1e-4)
    np.testing.assert_allclose(ours["outputs"]["kept"], companion(name)["per"], atol=1e-6)
    assert not wrong_gradients(ours["state"], name)


def test_logits_in_training_mode_equal_the_published_codes():
    expected = fill.expected("pcmanet_resnet50_s4_train")
    for k in STAGES:
        logits = maps(trained()["outputs"]["stage_logits"][k - 1])
        reference = expected[f"output_conv{k}"]
        tolerance = 1e-4 * reference.std() + 1e-5
        np.testing.assert_allclose(logits, reference, rtol=0, atol=tolerance)


def test_running_statistics_equal_the_published_codes_up_to_the_variances_bias():
    fixture, sizes = "pcmanet_resnet50_s4", {"1": 56, "2": 28, "3": 14, "4": 7}
    unused = re.compile(r"resnet\.layer[34]_2\..*|gf4\.seq2\..*|.*num_batches_tracked")
    for entry, reference in fill.expected(f"{fixture}_train").items():
        name = entry.removeprefix("buffer/")
        if name == entry or unused.fullmatch(name):
            continue
        ours, before = trained()["state"][name], fill.weight(name, reference.shape)
        if name.endswith("running_var") and not name.startswith("resnet"):
            # PyTorch's running variance is the unbiased one, Flax's the biased one.
            stage = next(c for c in name if c.isdigit())
            count = 10 * sizes[stage] ** 2
            ours = before * 0.9 + (ours - before * 0.9) * count / (count - 1)
        np.testing.assert_allclose(ours, reference, atol=5e-6, err_msg=name)
