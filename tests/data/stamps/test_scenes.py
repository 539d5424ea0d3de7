"""Clips: the same everywhere, exact, and fair."""

import dataclasses
import hashlib
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.data.stamps import classes, painting
from avs_jax.data.stamps.media import Media
from avs_jax.data.stamps.scenes import SECONDS, Scenes
from avs_jax.data.stamps.source import StampsSource
from tests.data.stamps import made_up

SIZE = 64
# sha256 of parts of the first ten clips of made-up media
GOLDEN = {
    "label": "2d012cfb0c5b633f",
    "objects": "d7a140fda4a0a015",
    "instances": "20e78b3fd839a82a",
    "waveform": "c01dd4af783e22b5",
    "jpegs": "2dcb34ae178cf4d0",
}


@pytest.fixture(scope="module")
def scenes(small_media):
    return Scenes(small_media, "train", SIZE)


@pytest.fixture(scope="module")
def clips(scenes):
    """(plan, clip) of the first thirty."""
    plans = [scenes.plan(i) for i in range(30)]
    return [(plan, scenes.render(plan)) for plan in plans]


def plain(plan):
    """The plan without anything that changes colours behind the objects."""
    camera = dataclasses.replace(
        plan.camera, blur=0.0, light=(0.0, 0.0), noise=0.0, quality=100, pan=(0.0, 0.0)
    )
    return dataclasses.replace(plan, camera=camera)


@pytest.mark.parametrize("part", GOLDEN)
def test_clip_is_the_same_on_every_machine(clips, part):
    """What changes clips on purpose changes this; then the builder's version has to change, too."""
    digest = hashlib.sha256()
    for _, clip in clips[:10]:
        made = getattr(clip, part)
        for piece in made if isinstance(made, list) else [made.tobytes()]:
            digest.update(piece)
    assert digest.hexdigest()[:16] == GOLDEN[part]


def test_clip_hangs_on_its_number_alone(scenes, small_media):
    later = Scenes(small_media, "train", SIZE)
    assert later.plan(7) == scenes.plan(7)
    assert later.plan(8) != scenes.plan(7)
    assert Scenes(small_media, "train", SIZE, seed=1).plan(7) != scenes.plan(7)
    assert Scenes(small_media, "test", SIZE).plan(7).key != scenes.plan(7).key


def test_plan_hangs_on_no_picture_size(small_media, scenes):
    large = Scenes(small_media, "train", 2 * SIZE)
    assert large.plan(3) == scenes.plan(3)
    small, big = (s.render(s.plan(3)).instances for s in (scenes, large))
    share = [np.mean(masks > 0) for masks in (small, big)]
    assert share[0] == pytest.approx(share[1], rel=0.05)


def test_label_is_what_sounds_and_is_seen(clips):
    for plan, clip in clips:
        ids = [classes.CLASSES.index(thing.name) for thing in plan.things]
        for second in range(SECONDS):
            for i, thing in enumerate(plan.things, start=1):
                seen = clip.instances[second] == i
                assert (clip.objects[second][seen] == ids[i - 1]).all()
                wanted = ids[i - 1] if thing.voices[second] else 0
                assert (clip.label[second][seen] == wanted).all()
            assert not clip.label[second][clip.instances[second] == 0].any()
    assert len({plan.kind for plan, _ in clips}) > 1


def test_nothing_that_never_sounds_has_a_voice(small_media):
    scenes = Scenes(small_media, "train", SIZE)
    things = [thing for i in range(100) for thing in scenes.plan(i).things]
    silent = [thing for thing in things if thing.name == classes.SILENT]
    assert silent
    assert not any(any(thing.voices) for thing in silent)


def test_masks_are_exact(scenes, clips):
    """Where a thing is, and nowhere else, the picture differs from the one without it."""
    checked = 0
    for plan, _ in clips[:12]:
        plan = plain(plan)
        thing = plan.things[-1]  # in front
        if thing.blur > 0.5 or thing.pose.size < 0.3:
            continue
        checked += 1
        whole, less = (
            scenes.render(plan),
            scenes.render(dataclasses.replace(plan, things=plan.things[:-1])),
        )
        for second in (0, SECONDS - 1):
            a, b = (painting.decode_jpeg(c.jpegs[second]).astype(int) for c in (whole, less))
            differs = np.abs(a - b).sum(axis=-1) > 60
            mask = whole.instances[second] == len(plan.things)
            near = painting.blur(np.uint8(255 * mask)[..., None], 1.5)[..., 0]
            assert not differs[near == 0].any()  # far outside
            assert differs[near == 255].mean() > 0.95  # well inside
    assert checked >= 3


def test_what_is_in_front_hides_what_is_behind(clips):
    plan, clip = next((p, c) for p, c in clips if len(p.things) > 1)
    assert clip.instances.max() == len(plan.things)


def test_every_thing_can_be_seen_in_every_second(clips):
    for plan, clip in clips:
        for second in range(SECONDS):
            found = set(np.unique(clip.instances[second])) - {0}
            assert found == set(range(1, 1 + len(plan.things)))


def test_sound_is_there_exactly_where_something_sounds(small_media, clips, scenes):
    for plan, _ in clips:
        still = dataclasses.replace(plan, room=type(plan.room)(), hiss=0.0)
        sound = scenes.record(still).reshape(SECONDS, -1)
        for second in range(SECONDS):
            heard = any(thing.voices[second] for thing in plan.things) or plan.offscreen[second]
            assert sound[second].any() == bool(heard)


def test_hiss_is_all_of_a_clip_where_nothing_sounds(small_media):
    scenes = Scenes(small_media, "train", SIZE)
    quiet = next(
        p for p in map(scenes.plan, range(300)) if p.kind == "quiet" and not any(p.offscreen)
    )
    sound = scenes.record(quiet) / 32768
    assert np.sqrt((sound**2).mean()) < 10**-2.5


def test_sounds_of_absent_things_mark_nothing(small_media):
    """Some clips have the sound of a class of ours that is not in the picture."""
    scenes = Scenes(small_media, "train", SIZE)
    absent = [p for p in map(scenes.plan, range(150)) if p.kind == "absent" and any(p.offscreen)]
    assert absent
    own = {x.file for name, xs in scenes.pools.sounds.items() for x in xs}
    for plan in absent:
        outside = {voice.file for second in plan.offscreen for voice in second} & own
        seen = {x.file for thing in plan.things for x in scenes.pools.sounds.get(thing.name, ())}
        assert not outside & seen


def test_look_tells_nothing_of_the_sound(small_media):
    """Size, place, turn and depth of things that sound and of those that do not are alike."""
    scenes = Scenes(small_media, "train", SIZE)
    rows = {True: [], False: []}
    for i in range(300):
        plan = scenes.plan(i)
        for depth, thing in enumerate(plan.things):
            if thing.name != classes.SILENT:
                pose = thing.pose
                row = (pose.size, pose.x, pose.y, pose.angle, thing.blur, depth / len(plan.things))
                rows[any(thing.voices)].append(row)
    sounding, silent = (np.array(rows[key]) for key in (True, False))
    spread = np.concatenate([sounding, silent]).std(axis=0)
    apart = np.abs(sounding.mean(axis=0) - silent.mean(axis=0)) / spread
    assert apart.max() < 0.3


def test_held_out_clips_have_two_things_at_least(small_media):
    scenes = Scenes(small_media, "test", SIZE)
    assert min(len(scenes.plan(i).things) for i in range(40)) >= 2


def test_too_little_media_for_clips_are_told(tmp_path, monkeypatch):
    kept = {"dog": made_up.TABLE["dog"]}
    monkeypatch.setattr(made_up, "TABLE", kept)
    with pytest.raises(errors.BadValueError, match=r"has 1 classes and .* clips need 2 and 1"):
        Scenes(Media(made_up.write_media(tmp_path)), "train")


def test_real_clips_are_made(media):
    scenes = Scenes(Media(media), "cross")
    clip = scenes.render(scenes.plan(0))
    assert clip.instances.max() >= 2
    assert clip.waveform.dtype == np.int16


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the switches are those of x86-64")
def test_clip_hangs_on_no_width_of_vectors(tmp_path, clips):
    """The same clips with the vector units of old machines."""
    code = """
import hashlib, sys, numpy as np
from avs_jax.data.stamps.media import Media
from avs_jax.data.stamps.scenes import Scenes
from numpy._core._multiarray_umath import __cpu_features__ as features
assert not features.get("X86_V3"), "numpy did not do without"
scenes = Scenes(Media(sys.argv[1]), "train", 64)
for i in range(4):
    clip = scenes.render(scenes.plan(i))
    parts = [clip.label.tobytes(), clip.waveform.tobytes(), *clip.jpegs]
    print(hashlib.sha256(b"".join(parts)).hexdigest())
"""
    old = {
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,FMA3,AVX,SSE4.2,SSE4.1",
        "JSIMD_FORCENONE": "1",
    }
    folder = made_up.write_media(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    found = subprocess.run(command, env=os.environ | old, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    ours = []
    for _, clip in clips[:4]:
        parts = [clip.label.tobytes(), clip.waveform.tobytes(), *clip.jpegs]
        ours.append(hashlib.sha256(b"".join(parts)).hexdigest())
    assert found.stdout.split() == ours


def test_retake_has_the_same_pictures_and_other_sounds(scenes):
    plan = scenes.plan(0)
    takes = [scenes.retake(plan, take) for take in range(6)]
    assert takes[0] == plan
    looks = [[dataclasses.replace(t, voices=()) for t in take.things] for take in takes]
    assert all(look == looks[0] for look in looks)
    assert all(take.camera == plan.camera for take in takes)
    voices = {tuple(thing.voices for thing in take.things) + take.offscreen for take in takes}
    assert len(voices) == 6
    assert scenes.retake(plan, 3) == takes[3]


def test_takes_of_a_clip_share_frames_and_label_what_sounds(small_media):
    source = StampsSource(small_media, "train", 3, size=64)
    takes = source.takes(1, 5)
    np.testing.assert_array_equal(takes[0]["waveform"], source[1]["waveform"])
    for take, example in enumerate(takes):
        plan = source.scenes.retake(source.scenes.plan(1), take)
        assert example["frames"] is takes[0]["frames"]
        for second in range(5):
            on = [i for i, t in enumerate(plan.things, 1) if t.voices[second] is not None]
            sounding = np.isin(example["instances"][second], on)
            np.testing.assert_array_equal(example["label"][second] > 0, sounding)


def test_near_things_fill_the_picture_and_others_stay_as_they_are(scenes):
    plans = [(scenes.plan(i, near=0.5), scenes.plan(i)) for i in range(40)]
    near = [mine for mine, _ in plans if mine.near]
    assert 10 < len(near) < 30
    assert all(mine == usual for mine, usual in plans if not mine.near)
    sizes = [np.mean(scenes.render(p).instances > 0) for p in near]
    usual = [np.mean(scenes.render(p).instances > 0) for _, p in plans]
    assert np.mean(sizes) > 1.5 * np.mean(usual)
    assert {len(plan.things) for plan in near} == {1, 2}


def test_of_two_near_things_some_fill_a_half_each(small_media):
    scenes = Scenes(small_media, "train", SIZE)
    pairs = [p.things for p in (scenes.plan(i, near=1.0) for i in range(60)) if len(p.things) == 2]
    beside = [abs(b.pose.x - a.pose.x) > 0.35 for a, b in pairs]
    assert 0.3 < np.mean(beside) < 0.95


def test_near_clips_can_be_seen_and_are_met_by_sounds_of_absent_things(scenes):
    plan = scenes.plan(3, near=1.0)
    takes = [scenes.retake(plan, take) for take in range(40)]
    assert takes[0] == plan
    kinds = [take.kind for take in takes[1:]]
    assert 0.1 < np.mean([kind == "absent" for kind in kinds]) < 0.5
