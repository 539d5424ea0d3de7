"""The looks of sounding_shapes."""

import numpy as np
import pytest

from avs_jax.data.sounding_shapes import shapes

SKIN = shapes.Skin(hue=0.3, saturation=0.8, value=0.9, aspect=1.0, scale=1.0, phase=0.3)
KINDS = range(len(shapes.LOOKS))


def filled(look, pose, size):
    mask = np.zeros((size, size), bool)
    rows, columns, inside = shapes.outline(look, SKIN, pose, size)
    mask[rows, columns] = inside
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_covers_about_the_same_area(kind):
    area = filled(shapes.LOOKS[kind], shapes.Pose(0.5, 0.5, 0.2, 0.4), 200).mean()
    assert area == pytest.approx(0.85 * np.pi * 0.2**2, rel=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_bounding_box_cuts_nothing_off(kind):
    look = shapes.LOOKS[kind]
    u, v = np.meshgrid(*[np.linspace(-3, 3, 301, dtype=np.float32)] * 2)
    radii = np.maximum(np.abs(u), np.abs(v))[look.outline(u, v) > 0]
    # Turned by 45 degrees a corner reaches as far as the distance from the centre.
    turned = np.hypot(u, v)[look.outline(u, v) > 0]
    assert radii.max() <= look.reach + 0.02
    assert turned.max() <= look.reach + 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_textures_stay_between_dark_and_bright(kind):
    u, v = np.meshgrid(*[np.linspace(-1.4, 1.4, 57, dtype=np.float32)] * 2)
    for scale, phase in ((0.85, 0.0), (1.2, 0.97)):
        tone = shapes.LOOKS[kind].texture(u, v, scale, phase)
        assert tone.min() >= 0
        assert tone.max() <= 1
        assert tone.dtype == np.float32


def test_pairs_share_a_hue_and_differ_in_shape():
    for first, second in zip(shapes.LOOKS[::2], shapes.LOOKS[1::2], strict=True):
        assert first.hue == second.hue
        assert first.outline is not second.outline
    assert len({look.hue for look in shapes.LOOKS}) == len(shapes.LOOKS) // 2


def test_a_shape_keeps_its_place_when_the_size_changes():
    pose = shapes.Pose(0.3, 0.7, 0.2, 1.0)
    small, large = (filled(shapes.LOOKS[0], pose, size) for size in (48, 192))
    for mask in (small, large):
        y, x = (np.argwhere(mask).mean(0) + 0.5) / len(mask)
        assert (x, y) == pytest.approx((0.3, 0.7), abs=0.01)


def test_an_object_out_of_sight_is_none():
    assert shapes.outline(shapes.LOOKS[0], SKIN, shapes.Pose(3.0, 0.5, 0.1, 0.0), 32) is None


def test_paint_changes_nothing_outside_of_the_outline():
    picture = np.full((64, 64, 3), 0.5, np.float32)
    pose = shapes.Pose(0.4, 0.5, 0.2, 0.3)
    shapes.paint(picture, shapes.LOOKS[2], SKIN, pose)
    changed = (picture != 0.5).any(-1)
    mask = filled(shapes.LOOKS[2], pose, 64)
    assert changed[mask].all()
    # Soft edges reach one pixel out at most.
    grown = np.pad(mask, 2)
    near = np.zeros_like(mask)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            near |= np.roll(grown, (dy, dx), (0, 1))[2:-2, 2:-2]
    assert not changed[~near].any()
