"""Sampling, pasting and colours, against what they mean."""

import math

import numpy as np
import pytest

from avs_jax.data.stamps import painting
from avs_jax.data.stamps.painting import Colours, Pose


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)


def test_identity_gives_the_pixels_back(pixels):
    found = painting.sample(pixels, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), range(40), range(50))
    np.testing.assert_array_equal(found, pixels)


def test_between_two_pixels_is_their_mean(pixels):
    found = painting.sample(pixels, ((1.0, 0.0, 0.5), (0.0, 1.0, 0.0)), range(40), range(49))
    mean = (pixels[:, :-1].astype(float) + pixels[:, 1:]) / 2
    assert np.abs(found - mean).max() <= 0.5


def test_outside_is_nothing(pixels):
    found = painting.sample(pixels, ((1.0, 0.0, -60.0), (0.0, 1.0, 35.0)), range(40), range(140))
    assert found[:5, 60:110].any()
    assert not found[:, :59].any()
    assert not found[:, 111:].any()
    assert not found[6:].any()


def test_half_the_size_is_the_mean_of_four(pixels):
    mean = pixels.astype(float).reshape(20, 2, 25, 2, 4).mean(axis=(1, 3))
    assert np.abs(painting.halve(pixels) - mean).max() <= 0.5


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2])
@pytest.mark.parametrize("aspect", [1.0, 1.3])
def test_cutout_lies_where_its_pose_says(angle, aspect):
    opaque = np.full((30, 60, 1), 255, np.uint8)
    pose = Pose(x=0.4, y=0.6, size=0.5, angle=angle, aspect=aspect)
    rows, columns, found = painting.place(opaque, pose, 200)
    mask = np.zeros((200, 200), bool)
    mask[rows, columns] = found[..., 0] >= 128
    y, x = np.nonzero(mask)
    assert x.mean() + 0.5 == pytest.approx(80, abs=1)
    assert y.mean() + 0.5 == pytest.approx(120, abs=1)
    assert mask.sum() == pytest.approx(100 * 50, rel=0.03)  # stretching keeps the area
    along = np.cos(angle) * (x - x.mean()) + np.sin(angle) * (y - y.mean())
    assert np.ptp(along) == pytest.approx(100 * math.sqrt(aspect), abs=3)


def test_flip_mirrors():
    cutout = np.zeros((20, 40, 1), np.uint8)
    cutout[:, :20] = 255
    poses = [Pose(0.5, 0.5, 0.4, 0.0, flip=flip) for flip in (False, True)]
    plain, flipped = (painting.place(cutout, pose, 100)[2][..., 0] for pose in poses)
    np.testing.assert_array_equal(plain[:, ::-1], flipped)


def test_cutout_outside_of_the_picture_is_nothing(pixels):
    assert painting.place(pixels, Pose(2.0, 0.5, 0.3, 0.0), 100) is None


def test_paste_mixes_by_alpha():
    picture = np.full((1, 3, 3), 100, np.uint8)
    cutout = np.array([[[200, 0, 0, 0], [200, 0, 0, 128], [200, 0, 0, 255]]], np.uint8)
    painting.paste(picture, painting.premultiply(cutout))
    np.testing.assert_array_equal(picture[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(picture[0, 2], [200, 0, 0])
    assert np.abs(picture[0, 1] - np.array([150, 50, 50])).max() <= 1


def test_transparent_pixels_lend_no_colour_to_the_edge():
    cutout = np.zeros((20, 20, 4), np.uint8)
    cutout[..., 0] = 255  # red, where it is transparent
    cutout[5:15, 5:15] = (0, 255, 0, 255)
    _, _, found = painting.place(painting.premultiply(cutout), Pose(0.5, 0.5, 0.37, 0.3), 50)
    assert found[..., 0].max() == 0


def test_neutral_colours_change_nothing(pixels):
    np.testing.assert_array_equal(Colours().apply(pixels), pixels)


def test_colours_keep_alpha(pixels):
    changed = Colours.draw(np.random.default_rng(1), 1.0).apply(pixels)
    np.testing.assert_array_equal(changed[..., 3], pixels[..., 3])
    assert not np.array_equal(changed[..., :3], pixels[..., :3])


def test_blur_keeps_what_is_even_and_spreads_a_dot():
    even = np.full((9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(painting.blur(even, 1.5), even)
    dot = np.zeros((15, 15, 1), np.uint8)
    dot[7, 7] = 255
    y, x = np.mgrid[-7:8, -7:8]
    expected = 255 * np.exp(-(x**2 + y**2) / 2) / (2 * math.pi)
    assert np.abs(painting.blur(dot, 1.0)[..., 0] - expected).max() < 3


def test_light_falls_off_along_its_angle():
    field = painting.light_field(64, 0.0, 0.3)
    assert field[:, 0].max() == pytest.approx(0.7, abs=0.01)
    assert field[:, -1].min() == pytest.approx(1.3, abs=0.01)
    assert field.mean() == pytest.approx(1, abs=1e-4)


def test_jpeg_comes_back_in_its_colours():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., 0] = 200
    found = painting.decode_jpeg(painting.encode_jpeg(picture, 92))
    assert np.abs(found.astype(int) - picture).max() < 8
