"""Records hold what evaluators add up, whatever the batches and devices."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import devices
from avs_jax.data import pipeline
from avs_jax.scoring import boundary, evaluators, modes, records, sounds
from avs_jax.scoring.sounds import Heard
from tests.scoring.made_up import (
    CLASSES,
    CLIPS,
    SECONDS,
    SIZE,
    MadeUpSource,
    listen,
    listen_variables,
)


@functools.cache
def _collect(num_classes, batch_size=2, devices=1, boundaries=False, objects=True, sound="own"):
    kind = "binary" if num_classes == 1 else "semantic"
    clips = devices.batch_sharding(devices.make_mesh(devices=jax.devices()[:devices]))
    score = records.make_score(listen, kind, clips, boundaries=boundaries)
    heard = Heard(MadeUpSource(objects), sound, others=tuple(reversed(range(CLIPS))))
    batches = pipeline.eval_batches(
        heard, batch_size=batch_size, sound=sounds.pipeline_sound(sound)
    )
    return records.collect(score, listen_variables(num_classes), batches, clips, kind)


def _figures(family, num_classes, batch_size, devices):
    own = _collect(num_classes, batch_size, devices, boundaries=family == "jf")
    if family != "robust":
        return modes.MODES[family](own)
    return modes.robust(
        own, {s: _collect(num_classes, batch_size, devices, sound=s) for s in sounds.SOUNDS[1:]}
    )


def _assert_same(one, other):
    assert one.clips == other.clips
    np.testing.assert_array_equal(one.use, other.use)
    for name in one.scores:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6, err_msg=name)


@pytest.fixture(params=[1, CLASSES], ids=["binary", "semantic"])
def num_classes(request):
    return request.param


def test_summary_is_what_the_evaluators_add_up(num_classes):
    config = ml_collections.ConfigDict(
        {
            "model": {"num_classes": num_classes},
            "data": {"size": SIZE, "num_threads": 0},
            "eval": {"batch_size": 2, "split": "test", "sounds": ("own",), "oracle": False},
        }
    )
    clips = devices.batch_sharding(devices.make_mesh(devices=jax.devices()[:1]))
    (evaluator,) = evaluators.build_evaluators(config, listen, MadeUpSource(), clips)
    expected = {
        name.removeprefix("test/"): value
        for name, value in evaluator.run(listen_variables(num_classes))
    }
    assert modes.summary(_collect(num_classes)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_does_not_matter(num_classes, batch_size):
    _assert_same(_collect(num_classes, batch_size), _collect(num_classes))


def test_number_of_devices_does_not_matter(num_classes):
    _assert_same(_collect(num_classes, 8, devices=8), _collect(num_classes))


@pytest.mark.parametrize("family", [*modes.MODES, "robust"])
@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (3, 1), (8, 1), (8, 8)])
def test_every_family_is_the_same_for_all_batches_and_devices(
    family, num_classes, batch_size, devices
):
    figures = _figures(family, num_classes, batch_size, devices)
    assert figures == pytest.approx(_figures(family, num_classes, 2, 1), abs=1e-6)


def test_frames_in_use_exist_and_are_labelled():
    source = MadeUpSource()
    expected = [source[i]["label_mask"] & source[i]["frame_mask"] for i in range(CLIPS)]
    np.testing.assert_array_equal(_collect(1).use, expected)


def test_boundaries_are_those_of_the_foreground():
    found = _collect(CLASSES, boundaries=True)
    source = MadeUpSource()
    batch = {
        k: jnp.stack([source[i][k] for i in range(CLIPS)]) for k in ("frames", "waveform", "label")
    }
    predicted = jnp.argmax(listen(listen_variables(CLASSES), batch), -1) > 0
    expected = boundary.boundary_accuracy(predicted, batch["label"] > 0)
    np.testing.assert_allclose(found["boundary"], expected, atol=1e-6)


def test_only_keeps_the_frames_asked_for():
    found = _collect(1)
    first = found.only(seconds=np.arange(SECONDS) == 0)
    assert first.use[:, 0].all() and not first.use[:, 1:].any()
    third = found.only(clips=np.arange(CLIPS) == 2)
    assert third.use.any(1).tolist() == [i == 2 for i in range(CLIPS)]


def test_masks_are_handed_over_for_the_seconds_that_exist():
    clips = devices.batch_sharding(devices.make_mesh(devices=jax.devices()[:1]))
    score = records.make_score(listen, "binary", clips, masks=True)
    batches = pipeline.eval_batches(Heard(MadeUpSource()), batch_size=2)
    seen = {}
    found = records.collect(
        score,
        listen_variables(1),
        batches,
        clips,
        "binary",
        on_masks=lambda clip, masks: seen.update({clip.id: masks}),
    )
    shapes = {name: masks.shape for name, masks in seen.items()}
    assert shapes == {f"clip {i}": (SECONDS - (i == 3), SIZE, SIZE) for i in range(CLIPS)}
    assert seen["clip 0"].sum() == found["predicted"][0].sum()


# ------------------------------------------------------------------------ what is known of a clip


def _describe(kind, source):
    (batch,) = pipeline.eval_batches(source, batch_size=CLIPS)
    return records.describe_clip(batch, 1, kind)


def test_classes_come_from_the_masks_of_all_objects():
    clip = _describe("binary", MadeUpSource())
    assert clip.visible == {"2", "4"} and clip.sounding == {"2"} and clip.num_sources == 1


def test_classes_come_from_semantic_labels():
    clip = _describe("semantic", MadeUpSource(objects=False))
    assert clip.visible == clip.sounding == {"2"}


def test_classes_of_binary_clips_come_from_their_category():
    source = MadeUpSource(objects=False, category=["dog_barking"] * CLIPS, subset=["s4"] * CLIPS)
    clip = _describe("binary", source)
    assert clip.visible == clip.sounding == {"dog_barking"} and clip.subset == "s4"


def test_joined_categories_are_taken_apart():
    source = MadeUpSource(objects=False, category=["girl_guitar"] * CLIPS, subset=["v2"] * CLIPS)
    assert _describe("binary", source).sounding == {"girl", "guitar"}


def test_classes_of_binary_clips_are_unknown_otherwise():
    clip = _describe("binary", MadeUpSource(objects=False))
    assert not clip.visible and not clip.sounding and clip.num_sources is None
