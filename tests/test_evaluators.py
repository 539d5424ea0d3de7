"""Evaluators on five clips: names, sounds, the oracle, and what must not change a figure."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import errors, evaluators, metrics, sharding

CLIPS, SECONDS, SIZE, CLASSES = 5, 3, 16, 6


class _Source:
    """Clips in memory: two squares a frame, the first of which sounds except in its last second."""

    def __init__(self, objects=True):
        self._objects = objects

    def __len__(self):
        return CLIPS

    def __repr__(self):
        return "Source('made_up/test')"

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        frames = rng.integers(0, 128, (SECONDS, SIZE, SIZE, 3)).astype(np.uint8)
        objects = np.zeros((SECONDS, SIZE, SIZE), np.uint8)
        label = np.zeros((SECONDS, SIZE, SIZE), np.int32)
        top = 1 + index
        objects[:, top : top + 5, 1:7] = 1 + index % 3
        label[:-1] = objects[:-1]
        objects[:, 5:12, 9:15] = 4
        frames[objects > 0] += np.uint8(100)
        waveform = rng.normal(size=SECONDS * 16_000).astype(np.float32)
        waveform[-16_000:] = 0
        example = {
            "frames": frames,
            "waveform": waveform,
            "label": label,
            "objects": objects,
            "label_mask": np.arange(SECONDS) < SECONDS - index % 2,
            "frame_mask": np.arange(SECONDS) < SECONDS - (index == 3),
            "id": f"clip {index}",
        }
        return example if self._objects else {k: v for k, v in example.items() if k != "objects"}


@pytest.fixture(params=[1, CLASSES], ids=["binary", "semantic"])
def split(request):
    """(source, number of classes)."""
    return _Source(), request.param


def _config(num_classes, batch_size=2, sounds=("own",), oracle=False):
    return ml_collections.ConfigDict(
        {
            "model": {"num_classes": num_classes},
            "data": {"size": SIZE, "num_threads": 0},
            "eval": {"batch_size": batch_size, "split": "test", "sounds": sounds, "oracle": oracle},
        }
    )


def _listen(variables, batch):
    """Logits of a model that marks what is bright, in the seconds that are not silent."""
    # of an integer sum and never 0, so that no rounding decides between two classes
    bright = (batch["frames"].astype(jnp.int32).sum(-1) - 384.5) / 384.0  # [b t h w]
    b, t = bright.shape[:2]
    loudness = jnp.abs(batch["waveform"].reshape(b, t, -1)).mean(-1)
    heard = jnp.where(loudness > 0.01, 1.0, -1.0)[..., None, None]
    logits = jnp.where(heard > 0, bright, -1.0) * variables["scale"]
    classes = variables["classes"]
    return logits[..., None] * classes


def _variables(num_classes):
    classes = np.ones(1) if num_classes == 1 else np.linspace(-1, 1, num_classes)
    return {"scale": jnp.float32(3.0), "classes": jnp.asarray(classes, jnp.float32)}


def _mesh_sharding(devices=1):
    return sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:devices]))


def _run(split, *, devices=1, **settings):
    source, num_classes = split
    built = evaluators.build_evaluators(
        _config(num_classes, **settings), _listen, source, _mesh_sharding(devices)
    )
    return {
        name: value for evaluator in built for name, value in evaluator.run(_variables(num_classes))
    }


def test_figures_are_those_of_the_whole_split_in_one_piece(split):
    source, num_classes = split
    examples = [source[i] for i in range(CLIPS)]
    batch = {
        key: jnp.asarray(np.stack([e[key] for e in examples]))
        for key in ("frames", "waveform", "label", "label_mask", "frame_mask")
    }
    logits = _listen(_variables(num_classes), batch)
    use = batch["label_mask"] & batch["frame_mask"]
    update = jax.jit(lambda state, *arrays: state.update(*arrays))
    if num_classes == 1:
        state = update(metrics.BinaryState.empty(), logits[..., 0], batch["label"], use)
    else:
        state = update(metrics.SemanticState.empty(num_classes), logits, batch["label"], use)
    expected = {f"test/{name}": value for name, value in state.compute().items()}
    assert _run(split) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_does_not_change_a_figure(split, batch_size):
    assert _run(split, batch_size=batch_size) == pytest.approx(_run(split), abs=1e-6)


def test_eight_devices_give_the_figures_of_one(split):
    eight = _run(split, batch_size=8, devices=8, sounds=("own", "swap"), oracle=True)
    one = _run(split, batch_size=8, devices=1, sounds=("own", "swap"), oracle=True)
    assert eight == pytest.approx(one, abs=1e-6)


def test_names_tell_the_sound(split):
    names = _run(split, sounds=("own", "mute", "swap"), oracle=True)
    wanted = {
        f"test/{metric}{suffix}"
        for metric in ("miou", "f_measure")
        for suffix in ("", "_mute", "_swap", "_all_objects_oracle")
    }
    assert wanted <= set(names)


def test_muting_a_model_that_needs_sound_empties_its_masks():
    results = _run((_Source(), 1), sounds=("own", "mute"))
    assert results["test/miou_nonempty_mute"] == 0 and results["test/miou_empty_mute"] == 1
    assert results["test/miou_nonempty"] > 0


def test_oracle_is_the_score_of_all_objects():
    source, ious = _Source(), []
    for i in range(CLIPS):
        example = source[i]
        use = example["label_mask"] & example["frame_mask"]
        objects, label = example["objects"][use] > 0, example["label"][use] > 0
        for seen, true in zip(objects, label, strict=True):
            inter, union = (seen & true).sum(), (seen | true).sum()
            ious.append(inter / union if true.any() else 1 - seen.mean())
    results = _run((source, 1), sounds=(), oracle=True)
    np.testing.assert_allclose(results["test/miou_all_objects_oracle"], np.mean(ious), atol=1e-6)


def test_run_can_be_repeated(split):
    source, num_classes = split
    evaluator, *_ = evaluators.build_evaluators(
        _config(num_classes), _listen, source, _mesh_sharding()
    )
    variables = _variables(num_classes)
    assert dict(evaluator.run(variables)) == dict(evaluator.run(variables))


def test_sounds_share_one_compilation(split):
    source, num_classes = split
    built = evaluators.build_evaluators(
        _config(num_classes, sounds=("own", "mute", "swap")), _listen, source, _mesh_sharding()
    )
    for evaluator in built:
        list(evaluator.run(_variables(num_classes)))
    assert built[0].update._cache_size() == 1


def test_progress_sees_every_batch(split):
    source, num_classes = split
    evaluator, *_ = evaluators.build_evaluators(
        _config(num_classes), _listen, source, _mesh_sharding()
    )
    seen = []

    def track(batches):
        for batch in batches:
            seen.append(batch["id"])
            yield batch

    list(evaluator.run(_variables(num_classes), track))
    assert len(seen) == len(evaluator.batches) == 3


def test_oracle_without_known_objects_is_refused(split):
    with pytest.raises(errors.BadValueError, match=r"eval.oracle needs .*made_up/test"):
        evaluators.build_evaluators(
            _config(split[1], oracle=True), _listen, _Source(objects=False), _mesh_sharding()
        )


def test_unknown_sound_is_refused(split):
    with pytest.raises(errors.UnknownNameError, match="unknown sound 'louder'; known: mute, own"):
        _run(split, sounds=("louder",))


def test_unknown_kind_is_refused():
    with pytest.raises(errors.UnknownNameError, match="kind of evaluation 'ternary'"):
        evaluators.make_update(_listen, "ternary", _mesh_sharding())


def test_split_without_labels_is_refused(split):
    source, num_classes = split
    evaluator, *_ = evaluators.build_evaluators(
        _config(num_classes), _listen, source, _mesh_sharding()
    )
    unlabelled = [
        dict(batch, label_mask=np.zeros_like(batch["label_mask"])) for batch in evaluator.batches
    ]
    blind = dataclasses.replace(evaluator, batches=unlabelled)
    with pytest.raises(errors.BadValueError, match="no labelled frame"):
        list(blind.run(_variables(num_classes)))
