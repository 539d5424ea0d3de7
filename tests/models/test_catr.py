"""CATR in both modes, on small networks. Against the published code: test_catr_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax import errors, models
from avs_jax.layers import losses
from avs_jax.models.catr import FrameGates, answer, query_attention

MODES = ("reference", "paper")
SMALL = {
    "dim": 32,
    "num_heads": 4,
    "hidden": 48,
    "num_queries": 6,
    "decoder_layers": 2,
    "pixel_widths": (16, 16, 8, 8),
    "mask_dim": 8,
    "norm_groups": 4,
}


def make_model(mode, **fields):
    return models.get_model(
        "catr", "small_resnet", audio_backbone="audio_cnn", mode=mode, **SMALL | fields
    )


def make_inputs(b=2, t=3, size=64, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(b, t, size, size, 3)).astype(np.float32)
    log_mel = rng.uniform(-4, 1, size=(b, t, 96, 64)).astype(np.float32)
    return jnp.asarray(frames), jnp.asarray(log_mel)


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


LOOKS = ("decoder0", "self_attention", "query"), ("decoder1", "cross_attention")


@pytest.fixture(scope="module")
def networks(fill_variables):
    """{mode: (jitted forward(frames, log_mel, frame_mask), model, variables)}.

    forward -> outputs, and of the decoder what LOOKS names.
    """

    def make(mode):
        model = make_model(mode, num_tags=3, num_semantic=3)
        variables = fill_variables(model, *make_inputs())
        # Queries of unit variance differ enough to choose among.
        queries = variables["params"]["queries"]
        queries = np.random.default_rng(1).normal(size=queries.shape).astype(np.float32)
        variables["params"]["queries"] = queries

        def looks(module, _):
            return any(module.path[: len(path)] == path for path in LOOKS)

        def forward(*inputs):
            outputs, state = model.apply(
                variables, *inputs, capture_intermediates=looks, mutable="intermediates"
            )
            return outputs, state["intermediates"]

        return jax.jit(forward), model, variables

    return {mode: make(mode) for mode in MODES}


@pytest.fixture(scope="module")
def trained(networks):
    """{mode: [(gradients, masks) of two dropout keys]}."""

    def train(mode):
        _, model, variables = networks[mode]
        frames, log_mel = make_inputs(b=1, t=2)

        def total(params, key):
            outputs, _ = model.apply(
                {**variables, "params": params},
                frames,
                log_mel,
                train=True,
                mutable="batch_stats",
                rngs={"dropout": key},
            )
            weights = {"tag_weight": 1.0, "semantic_weight": 1.0}
            batch = make_batch(b=1, t=2)
            terms = models.get_loss("catr")(outputs, batch, **weights)
            return losses.total(terms), outputs["pred_masks"]

        gradient = jax.jit(jax.grad(total, has_aux=True))
        return [gradient(variables["params"], jax.random.key(seed)) for seed in (0, 1)]

    return {mode: train(mode) for mode in MODES}


def test_shapes(networks, mode):
    outputs, _ = networks[mode][0](*make_inputs())
    cells = {"reference": 4, "paper": 16}[mode]
    assert {name: x.shape for name, x in outputs.items()} == {
        "logits": (2, 3, 64, 64, 1),
        "query": (2, 3),
        "pred_masks": (2, 2, 3, 6, cells, cells),
        "pred_is_referred": (2, 2, 3, 6, 2),
    }


@pytest.mark.parametrize("shape", [(1, 7, 64, 64), (3, 1, 32, 96)])
def test_any_number_of_frames_and_any_sides(networks, mode, shape):
    b, t, height, width = shape
    inputs = jnp.zeros((b, t, height, width, 3)), jnp.zeros((b, t, 96, 64))
    outputs, _ = jax.eval_shape(networks[mode][0], *inputs)
    assert outputs["logits"].shape == (*shape, 1)


def test_several_classes_give_a_map_of_them(fill_variables, mode):
    model, inputs = make_model(mode, num_classes=5), make_inputs(b=1, t=2)
    variables = fill_variables(model, *inputs)
    outputs = jax.eval_shape(lambda: model.apply(variables, *inputs))
    assert outputs["logits"].shape == (1, 2, 64, 64, 5)
    assert outputs["pred_is_referred"].shape[-1] == 6


def test_clips_do_not_depend_on_each_other(networks, mode):
    forward = networks[mode][0]
    frames, log_mel = make_inputs()
    one, _ = forward(frames, log_mel)
    other, _ = forward(frames.at[1].add(1.0), log_mel.at[1].add(0.5))
    np.testing.assert_array_equal(one["pred_masks"][:, 0], other["pred_masks"][:, 0])
    assert np.abs(one["pred_masks"][:, 1] - other["pred_masks"][:, 1]).max() > 1e-4


def test_clips_keep_their_order(networks, mode):
    forward = networks[mode][0]
    inputs = make_inputs()
    one, other = forward(*inputs)[0], forward(*(x[::-1] for x in inputs))[0]
    np.testing.assert_allclose(
        one["pred_masks"], other["pred_masks"][:, ::-1], rtol=1e-3, atol=1e-4
    )


def test_frames_of_a_clip_depend_on_each_other(networks, mode):
    forward = networks[mode][0]
    frames, log_mel = make_inputs()
    changed = frames.at[0, 2].add(1.0)
    before, after = (forward(x, log_mel)[0]["pred_masks"][-1] for x in (frames, changed))
    assert np.abs(before[0, 0] - after[0, 0]).max() > 1e-4
    np.testing.assert_array_equal(before[1], after[1])


def test_padded_frames_do_not_reach_real_ones(networks, mode):
    forward = networks[mode][0]
    frames, log_mel = make_inputs()
    mask = jnp.array([[True, True, False], [True, True, True]])
    other_frames, other_log_mel = frames.at[0, 2].set(3.0), log_mel.at[0, 2].set(0.5)
    one, _ = forward(frames, log_mel, mask)
    other, _ = forward(other_frames, other_log_mel, mask)
    np.testing.assert_array_equal(one["pred_masks"][:, mask], other["pred_masks"][:, mask])
    unmasked, _ = forward(other_frames, other_log_mel, jnp.ones_like(mask))
    assert np.abs(one["pred_masks"][:, mask] - unmasked["pred_masks"][:, mask]).max() > 1e-4


def test_a_full_mask_is_no_mask(networks, mode):
    forward, inputs = networks[mode][0], make_inputs()
    masked = forward(*inputs, jnp.ones((2, 3), bool))[0]["pred_masks"]
    # Two programs, each rounded in its own way (in float64 they are equal), and the published
    # fusions square what they attended to: as in test_see_and_decide.
    atol = 5e-5 if mode == "reference" else 1e-5
    np.testing.assert_allclose(masked, forward(*inputs)[0]["pred_masks"], rtol=1e-4, atol=atol)


def test_a_clip_without_frames_stays_finite(networks, mode):
    outputs, _ = networks[mode][0](*make_inputs(), jnp.array([[False] * 3, [True] * 3]))
    assert np.isfinite(outputs["logits"]).all()


@pytest.mark.parametrize(("mode", "changes"), [("reference", False), ("paper", True)])
def test_queries_change_with_the_sound_in_paper_only(networks, mode, changes):
    frames, log_mel = make_inputs()
    one, other = (
        networks[mode][0](frames, sound)[1]["decoder0"]["self_attention"]["query"]["__call__"][0]
        for sound in (log_mel, make_inputs(seed=1)[1])
    )
    assert (np.abs(one - other).max() > 1e-3) == changes


def test_masks_change_with_the_sound(networks, mode):
    forward = networks[mode][0]
    frames, log_mel = make_inputs()
    one, other = (forward(frames, x)[0]["pred_masks"] for x in (log_mel, make_inputs(seed=1)[1]))
    assert np.abs(one - other).max() > 1e-3


def make_batch(b=2, t=3, size=64):
    """A square of class 2 in every frame but the last one, and one of class 1 in the first."""
    label = np.zeros((b, t, size, size), np.int32)
    label[:, :-1, 8:40, 8:40] = 2
    label[:, 0, 40:56, 40:56] = 1
    every = jnp.ones((b, t), bool)
    return {"label": jnp.asarray(label), "label_mask": every, "frame_mask": every}


def is_without_effect(path):
    """Parameters whose gradient vanishes by construction, in the published code too.

    A bias of the keys adds the same to all scores. In the first decoder layer all queries have the
    same content, so whichever they attend to, they get the same value; in `reference` it is zero.
    """
    first = path.startswith("decoder0/self_attention")
    return path.endswith("key/bias") or (first and not path.endswith(("value/bias", "out/bias")))


def test_gradient_reaches_every_parameter(trained, mode):
    grads = traverse_util.flatten_dict(trained[mode][0][0], sep="/")
    idle = [path for path, g in grads.items() if not np.abs(g).max() > 0]
    assert [path for path in idle if not is_without_effect(path)] == []
    assert all(np.isfinite(g).all() for g in grads.values())


def test_dropout_acts_in_training(trained, mode):
    (_, one), (_, other) = trained[mode]
    assert np.abs(one - other).max() > 1e-4


def test_rematerialisation_changes_nothing(networks):
    _, model, variables = networks["reference"]
    inputs = make_inputs(b=1, t=1, size=32)
    one, other = (
        jax.jit(lambda *x, m=m: m.apply(variables, *x)["pred_masks"])(*inputs)
        for m in (model, model.clone(remat="blocks"))
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_gates_leave_padded_frames_out():
    gates = FrameGates()
    rng = np.random.default_rng(0)
    blocks = [jnp.asarray(rng.normal(size=(4, 8, 8, 8)), jnp.float32) for _ in range(3)]
    exists = jnp.array([True, True, True, False])
    variables = gates.init(jax.random.key(0), blocks, exists)
    padded = [jnp.where(exists[:, None, None, None], x, 100.0) for x in blocks]
    outputs = [
        gates.apply(variables, x, exists, True, mutable="batch_stats") for x in (blocks, padded)
    ]
    (one, statistics), (other, other_statistics) = outputs
    np.testing.assert_array_equal(one[:3], other[:3])
    jax.tree.map(np.testing.assert_array_equal, statistics, other_statistics)


GOLDEN = {  # parameters, VGGish apart; the first is what the published file has, dead ones apart
    ("reference", "pvt_v2_b5"): 106_667_942,
    ("reference", "resnet50"): 72_915_750,
    ("paper", "pvt_v2_b5"): 104_548_770,
    ("paper", "resnet50"): 72_566_050,
}


@pytest.mark.parametrize(("mode", "backbone"), GOLDEN)
def test_parameter_count(mode, backbone):
    model = models.get_model("catr", backbone, mode=mode)
    inputs = jnp.zeros((1, 2, 64, 64, 3)), jnp.zeros((1, 2, 96, 64))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]
    params.pop("audio_backbone")
    assert sum(x.size for x in jax.tree.leaves(params)) == GOLDEN[mode, backbone]


def test_attention_of_the_answering_query(networks, mode):
    """Its weights are those with which the decoder mixed the values for this query."""
    forward, model, variables = networks[mode]
    frames, log_mel = make_inputs()
    mask = jnp.array([[True, True, False], [True, True, True]])
    attend = jax.jit(query_attention, static_argnums=0)
    cells, sound = attend(model, variables, frames, log_mel, mask)
    assert cells.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(cells.sum((2, 3)) + sound, 1.0, rtol=1e-5)
    assert ((sound > 1e-3) == (mode == "reference")).all()

    outputs, found = forward(frames, log_mel, mask)
    found = found["decoder1"]["cross_attention"]
    heads, width = SMALL["num_heads"], SMALL["dim"] // SMALL["num_heads"]
    query, key, value = (
        np.asarray(found[name]["__call__"][0]).reshape(6, -1, heads, width)
        for name in ("query", "key", "value")
    )
    frame, chosen = 5, int(outputs["query"][1, 2])  # of the clip without padding
    scores = np.einsum("hd,shd->hs", query[frame, chosen], key[frame]) / np.sqrt(width)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("hs,shd->hd", weights, value[frame]).reshape(-1)
    out = variables["params"]["decoder1"]["cross_attention"]["out"]
    got = np.asarray(found["__call__"][0])[frame, chosen]
    np.testing.assert_allclose(mixed @ out["kernel"] + out["bias"], got, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(cells[1, 2].reshape(-1), weights.mean(0)[:64], rtol=1e-3)


def test_unknown_mode():
    with pytest.raises(errors.UnknownNameError, match="mode of catr 'papper'; known: paper, refer"):
        jax.eval_shape(make_model("papper").init, jax.random.key(0), *make_inputs())


def test_published_gates_take_three_blocks():
    with pytest.raises(errors.BadValueError, match="exactly 3 blocks"):
        model = make_model("reference", encoder_layers=2)
        jax.eval_shape(model.init, jax.random.key(0), *make_inputs())


def test_a_gate_takes_two_blocks():
    with pytest.raises(errors.BadValueError, match="use 2 or more"):
        model = make_model("paper", encoder_layers=1)
        jax.eval_shape(model.init, jax.random.key(0), *make_inputs())


def test_answer_shows_the_mask_of_the_likeliest_query():
    masks = jnp.stack([jnp.full((4, 4), -3.0), jnp.full((4, 4), 2.0)])[None, None]
    classes = jnp.array([[1.0, 0.0], [2.0, 0.0]])[None, None]
    logits, query = answer(masks, classes, (8, 8))
    assert query == 1
    np.testing.assert_allclose(logits, jnp.full((1, 1, 8, 8, 1), 2.0))


@pytest.mark.parametrize(("empty_if_silent", "sounds"), [(False, True), (True, False)])
def test_a_silent_frame_is_empty_where_wanted(empty_if_silent, sounds):
    classes = jnp.array([[[[0.0, 1.0], [0.0, 2.0]]]])
    logits, _ = answer(jnp.ones((1, 1, 2, 4, 4)), classes, (4, 4), empty_if_silent)
    assert ((logits > 0) == sounds).all()


def test_several_classes_are_a_sum_over_queries():
    rng = np.random.default_rng(0)
    masks = jnp.asarray(rng.normal(size=(1, 2, 3, 4, 4)), jnp.float32)
    classes = jnp.asarray(rng.normal(size=(1, 2, 3, 6)), jnp.float32)
    logits, query = answer(masks, classes, (4, 4))
    wanted = np.einsum(
        "btqk,btqhw->bthwk", jax.nn.softmax(classes)[..., :-1], jax.nn.sigmoid(masks)
    )
    np.testing.assert_allclose(np.exp(logits), wanted, rtol=1e-4)
    np.testing.assert_array_equal(query, jax.nn.softmax(classes)[..., -1].argmin(-1))
