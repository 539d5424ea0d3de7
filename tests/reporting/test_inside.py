"""What the pictures of a model are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import models
from avs_jax.reporting import inside
from tests.weights.zoo import stand_in


@pytest.mark.parametrize(("classes", "expected"), [(1, [1, 0]), (3, [2, 1])])
def test_ids_are_signs_or_the_likeliest_class(classes, expected):
    logits = np.array([[0.1, 0.2, 0.3], [-1.0, 2.0, 0.0]], np.float32)[:, :classes]
    np.testing.assert_array_equal(inside.predict_ids(logits), expected)


def test_clip_is_shown_as_long_as_it_is():
    clip = {
        "frames": np.zeros((5, 4, 4, 3), np.uint8),
        "label": np.zeros((5, 4, 4), np.int32),
        "frame_mask": np.arange(5) < 3,
    }
    sample = inside.Sample(clip, clip, dict)
    assert [x.shape[0] for x in sample.known()] == [3, 3]
    smaller = inside.Sample(clip, clip, dict, width=2)
    assert [x.shape for x in smaller.known()] == [(3, 2, 2, 3), (3, 2, 2)]


def test_masks_of_one_class_begin_at_the_model_s_own_threshold():
    loaded = stand_in.make_loaded()._replace(temperature=2.0, threshold=0.3)
    least = inside.Network(loaded).least
    p = 1 / (1 + np.exp(-np.array([least - 0.01, least + 0.01]) / 2.0))
    assert p[0] < 0.3 < p[1]
    assert inside.predict_ids(np.array([[least - 0.01], [least + 0.01]]), least).tolist() == [
        0,
        1,
    ]


def test_attention_of_prompts_is_what_the_last_stage_mixes(fill_variables):
    model = models.get_model(
        "avesformer",
        "small_resnet",
        audio_backbone="audio_cnn",
        dim=16,
        num_heads=2,
        num_prompts=3,
        pqg_layers=1,
        pqg_hidden=16,
        early_stages=0,
        late_stages=2,
        late_hidden=16,
        decoder_stride=8,
        refine=(),
        head_widths=(8, 8),
        norm_groups=4,
    )
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.normal(size=(1, 2, 32, 32, 3)), jnp.float32)
    log_mel = jnp.asarray(rng.uniform(-4, 1, (1, 2, 96, 64)), jnp.float32)
    variables = fill_variables(model, frames, log_mel)
    attend = jax.jit(inside.prompt_attention, static_argnums=0)
    weights = np.asarray(attend(model, variables, frames, log_mel))
    assert weights.shape == (1, 2, 4, 4, 4)  # cells at 1/8; a token and three prompts
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert weights.std((2, 3)).max() > 1e-3

    def mixes(module, method):
        return module.path[:2] == ("late1", "cross_attention") and module.name in ("value", "out")

    @jax.jit
    def run(variables):
        capture = {"capture_intermediates": mixes, "mutable": "intermediates"}
        return model.apply(variables, frames, log_mel, **capture)

    _, state = run(variables)
    found = state["intermediates"]["late1"]["cross_attention"]
    value, mixed = (found[name]["__call__"][0] for name in ("value", "out"))
    out = variables["params"]["late1"]["cross_attention"]["out"]
    inverse = np.linalg.solve(out["kernel"].T, (np.asarray(mixed) - out["bias"]).T).T
    # Both heads' halves of what was mixed, by their mean weights, where values of the heads agree.
    heads = inverse.reshape(2, 16, 2, 8)
    values = np.asarray(value).reshape(2, 4, 2, 8)
    fitted = np.stack(
        [
            [np.linalg.lstsq(values[n, :, h].T, heads[n, :, h].T, rcond=None)[0] for h in range(2)]
            for n in range(2)
        ]
    )  # [n heads tokens cells]
    np.testing.assert_allclose(
        weights[0].reshape(2, 16, 4), fitted.mean(1).swapaxes(1, 2), rtol=1e-2, atol=1e-3
    )
