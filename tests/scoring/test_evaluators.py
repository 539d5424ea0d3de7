"""Evaluators on five clips: names, sounds, the oracle, and what must not change a figure."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.scoring import evaluators, metrics
from tests.scoring.made_up import CLASSES, CLIPS, SIZE, MadeUpSource, listen, listen_variables


@pytest.fixture(params=[1, CLASSES], ids=["binary", "semantic"])
def split(request):
    """(source, number of classes)."""
    return MadeUpSource(), request.param


def _config(num_classes, batch_size=2, sounds=("own",), oracle=False):
    return ml_collections.ConfigDict(
        {
            "model": {"num_classes": num_classes},
            "data": {"size": SIZE, "num_threads": 0},
            "eval": {"batch_size": batch_size, "split": "test", "sounds": sounds, "oracle": oracle},
        }
    )


def _mesh_sharding(devices=1):
    return devices.batch_sharding(devices.make_mesh(devices=jax.devices()[:devices]))


@functools.cache
def _run_once(num_classes, devices, batch_size, sounds, oracle):
    built = evaluators.build_evaluators(
        _config(num_classes, batch_size, sounds, oracle),
        listen,
        MadeUpSource(),
        _mesh_sharding(devices),
    )
    variables = listen_variables(num_classes)
    return {name: value for evaluator in built for name, value in evaluator.run(variables)}


def _run(split, *, devices=1, batch_size=2, sounds=("own",), oracle=False):
    return _run_once(split[1], devices, batch_size, sounds, oracle)


def test_figures_are_those_of_the_whole_split_in_one_piece(split):
    source, num_classes = split
    examples = [source[i] for i in range(CLIPS)]
    batch = {
        key: jnp.asarray(np.stack([e[key] for e in examples]))
        for key in ("frames", "waveform", "label", "label_mask", "frame_mask")
    }
    logits = listen(listen_variables(num_classes), batch)
    use, label = batch["label_mask"] & batch["frame_mask"], batch["label"].astype(jnp.int32)
    update = jax.jit(lambda state, *arrays: state.update(*arrays))
    if num_classes == 1:
        state = update(metrics.BinaryState.empty(), logits[..., 0], label, use)
    else:
        state = update(metrics.SemanticState.empty(num_classes), logits, label, use)
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
    results = _run((MadeUpSource(), 1), sounds=("own", "mute"))
    assert results["test/miou_nonempty_mute"] == 0 and results["test/miou_empty_mute"] == 1
    assert results["test/miou_nonempty"] > 0


def test_oracle_is_the_score_of_all_objects():
    source, ious = MadeUpSource(), []
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
        _config(num_classes), listen, source, _mesh_sharding()
    )
    variables = listen_variables(num_classes)
    assert dict(evaluator.run(variables)) == dict(evaluator.run(variables))


def test_sounds_share_one_compilation(split):
    source, num_classes = split
    built = evaluators.build_evaluators(
        _config(num_classes, sounds=("own", "mute", "swap")), listen, source, _mesh_sharding()
    )
    for evaluator in built:
        list(evaluator.run(listen_variables(num_classes)))
    assert built[0].update._cache_size() == 1


def test_progress_sees_every_batch(split):
    source, num_classes = split
    evaluator, *_ = evaluators.build_evaluators(
        _config(num_classes), listen, source, _mesh_sharding()
    )
    seen = []

    def track(batches):
        for batch in batches:
            seen.append(batch["id"])
            yield batch

    list(evaluator.run(listen_variables(num_classes), track))
    assert len(seen) == len(evaluator.batches) == 3


def test_oracle_without_known_objects_is_refused(split):
    with pytest.raises(errors.BadValueError, match=r"eval.oracle needs .*made_up/test"):
        evaluators.build_evaluators(
            _config(split[1], oracle=True), listen, MadeUpSource(objects=False), _mesh_sharding()
        )


def test_unknown_sound_is_refused(split):
    with pytest.raises(errors.UnknownNameError, match="unknown sound 'louder'; known: mute, own"):
        _run(split, sounds=("louder",))


def test_unknown_kind_is_refused():
    with pytest.raises(errors.UnknownNameError, match="kind of evaluation 'ternary'"):
        evaluators.make_update(listen, "ternary", _mesh_sharding())


def test_split_without_labels_is_refused(split):
    source, num_classes = split
    evaluator, *_ = evaluators.build_evaluators(
        _config(num_classes), listen, source, _mesh_sharding()
    )
    unlabelled = [
        dict(batch, label_mask=np.zeros_like(batch["label_mask"])) for batch in evaluator.batches
    ]
    blind = dataclasses.replace(evaluator, batches=unlabelled)
    with pytest.raises(errors.BadValueError, match="no labelled frame"):
        list(blind.run(listen_variables(num_classes)))
