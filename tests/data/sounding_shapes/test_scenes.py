"""What happens in the clips of sounding_shapes."""

import hashlib

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.data.sounding_shapes import scenes


def plans(subset, split, count):
    return [scenes.plan_clip(subset, split, index) for index in range(count)]


def draw_masks(plan, size=48):
    """Labels and objects [t h w] without the pictures, which take longer."""
    objects = []
    for second in range(plan.seconds):
        objects.append(scenes._draw_objects(plan, second + 0.5, size)[0])
    objects = np.stack(objects)
    label = np.zeros_like(objects)
    for second in range(plan.seconds):
        for thing in plan.things:
            if thing.voices[second] is not None:
                label[second][objects[second] == thing.kind + 1] = thing.kind + 1
    return label, objects


@pytest.mark.parametrize(
    "subset, golden",
    [("s4", "ecf3538e2073b36e"), ("ms3", "de3ab940be83705d"), ("avss", "f3de8abfdf1b8463")],
)
def test_labels_are_the_same_on_every_machine(subset, golden):
    digest = hashlib.sha256()
    for index in range(3):
        digest.update(
            scenes.render_clip(scenes.plan_clip(subset, "test", index), 32).label.tobytes()
        )
    assert digest.hexdigest()[:16] == golden


def test_a_clip_does_not_depend_on_what_was_made_before():
    first = scenes.render_clip(scenes.plan_clip("ms3", "train", 7), 32)
    scenes.render_clip(scenes.plan_clip("ms3", "train", 8), 32)
    again = scenes.render_clip(scenes.plan_clip("ms3", "train", 7), 32)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "other", [("ms3", "test", 3, 1), ("ms3", "validation", 3, 0), ("avss", "test", 3, 0)]
)
def test_seed_split_and_subset_change_the_clip(other):
    plan = scenes.plan_clip("ms3", "test", 3, 0)
    assert scenes.plan_clip(*other).things != plan.things


def test_label_is_the_class_of_what_sounds():
    for plan in plans("ms3", "test", 6):
        clip = scenes.render_clip(plan, 48)
        label, objects = draw_masks(plan)
        np.testing.assert_array_equal(clip.label, label)
        np.testing.assert_array_equal(clip.objects, objects)


def test_labels_are_a_subset_of_the_objects():
    for plan in plans("avss", "train", 5):
        clip = scenes.render_clip(plan, 48)
        sounding = clip.label > 0
        np.testing.assert_array_equal(clip.label[sounding], clip.objects[sounding])


def test_sound_is_there_when_something_is_labelled():
    for plan in plans("ms3", "test", 10):
        sound = scenes.record(plan).reshape(plan.seconds, 16000)
        loud = np.sqrt((sound**2).mean(1)) > 2 * plan.hiss
        heard = [any(thing.voices[k] is not None for thing in plan.things) for k in range(5)]
        np.testing.assert_array_equal(loud, heard)


def test_objects_move_continuously():
    scene = scenes.Scene(scenes.plan_clip("ms3", "test", 0), 48)
    now, soon, later = (scene.show(time)[2] for time in (1.0, 1.05, 2.0))
    assert 0 < (now != soon).mean() < (now != later).mean()


def test_an_object_that_sounds_is_never_a_sliver():
    for plan in plans("ms3", "train", 60):
        label, _ = draw_masks(plan)
        for second in range(plan.seconds):
            areas = scenes._draw_objects(plan, second + 0.5, 48)[1]
            for thing, area in zip(plan.things, areas, strict=True):
                if thing.voices[second] is not None:
                    assert (label[second] == thing.kind + 1).sum() >= 0.15 * area


def test_held_out_scenes_of_ms3_have_two_objects_or_more():
    for split in ("validation", "test"):
        assert {len(plan.things) for plan in plans("ms3", split, 40)} == {2, 3}
    assert {len(plan.things) for plan in plans("ms3", "train", 40)} == {1, 2, 3}


def test_in_s4_one_object_sounds():
    for plan in plans("s4", "train", 40):
        sounding = [thing for thing in plan.things if any(thing.voices)]
        assert len(sounding) == 1


def test_avss_mixes_clips_of_5_and_10_seconds():
    clips = plans("avss", "train", 40)
    assert {plan.seconds for plan in clips} == {5, 10}
    assert len(scenes.record(next(p for p in clips if p.seconds == 10))) == 160_000


def test_the_classes_of_a_clip_differ():
    for plan in plans("avss", "train", 40):
        assert len({thing.kind for thing in plan.things}) == len(plan.things)


def test_size_and_depth_do_not_tell_who_sounds():
    radius, depth = {True: [], False: []}, {True: [], False: []}
    for plan in plans("ms3", "test", 400):
        for place, thing in enumerate(plan.things):
            role = any(thing.voices)
            radius[role].append(thing.radius)
            depth[role].append(place / (len(plan.things) - 1))
    # Only the rule against slivers may tip the balance, a little.
    assert np.mean(radius[True]) == pytest.approx(np.mean(radius[False]), rel=0.03)
    assert np.mean(depth[True]) == pytest.approx(np.mean(depth[False]), abs=0.1)


def test_perfect_masks_of_all_objects_score_near_060_without_listening():
    scores, empty = [], []
    for plan in plans("ms3", "test", 220):
        label, objects = (masks > 0 for masks in draw_masks(plan))
        for truth, mask in zip(label, objects, strict=True):
            empty.append(not truth.any())
            overlap = (truth & mask).sum() / max(1, (truth | mask).sum())
            scores.append((~mask).mean() if empty[-1] else overlap)
    assert np.mean(scores) == pytest.approx(0.60, abs=0.02)
    assert np.mean(empty) == pytest.approx(0.18, abs=0.02)  # what predicting nothing scores


@pytest.mark.parametrize("subset, split", [("ms4", "test"), ("ms3", "val")])
def test_unknown_names_are_refused(subset, split):
    with pytest.raises(errors.UnknownNameError, match="known: "):
        scenes.plan_clip(subset, split, 0)
