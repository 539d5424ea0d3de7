"""What happens to a clip between disk and batch."""

import numpy as np
import pytest
from PIL import Image

from avs_jax import errors
from avs_jax.data import transforms


def make_example(height=24, width=24, seconds=3, seed=0):
    """A clip whose frames tell the label of each pixel: red = 20 * label + 10, at every frame."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 11, (seconds, height // 8, width // 8))
    label = blocks.repeat(8, 1).repeat(8, 2).astype(np.int32)
    frames = np.zeros((seconds, height, width, 3), np.uint8)
    frames[..., 0] = 20 * label + 10
    frames[..., 1] = np.arange(width)
    return {
        "frames": frames,
        "label": label,
        "objects": label.astype(np.uint8),
        "waveform": rng.uniform(-0.5, 0.5, seconds * 16_000).astype(np.float32),
        "label_mask": np.ones(seconds, bool),
        "frame_mask": np.ones(seconds, bool),
        "id": "clip",
    }


def rng(seed=0):
    return np.random.default_rng(seed)


def test_flip_mirrors_frames_and_masks_together():
    example = make_example()
    flipped = transforms.Flip(1.0).random_map(example, rng())
    for key in ("frames", "label", "objects"):
        np.testing.assert_array_equal(flipped[key], example[key][:, :, ::-1])
    np.testing.assert_array_equal(flipped["frames"][..., 0], 20 * flipped["label"] + 10)
    np.testing.assert_array_equal(flipped["waveform"], example["waveform"])


def test_flip_is_drawn_with_its_chance():
    example = make_example()
    flips = [
        bool((transforms.Flip(0.3).random_map(example, rng(s))["frames"][0, 0, 0, 1]) != 0)
        for s in range(400)
    ]
    assert np.mean(flips) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.6, 0.8), (1.5, 2.5)])
def test_scale_and_crop_keep_frames_and_masks_aligned(scale, seed):
    example = make_example(48, 64)
    cropped = transforms.ScaleCrop(48, scale).random_map(example, rng(seed))
    assert cropped["frames"].shape == (3, 48, 48, 3)
    assert cropped["label"].dtype == np.int32
    np.testing.assert_array_equal(cropped["label"], cropped["objects"])
    # Away from the blocks' edges, where frames are blended, the frame still tells the label.
    said = (cropped["frames"][..., 0].astype(int) - 10) / 20
    outside = (cropped["frames"] == transforms._OUTSIDE).all(-1)
    assert (np.abs(said - cropped["label"]) < 0.3)[~outside].mean() > 0.7
    assert not cropped["label"][outside].any()


@pytest.mark.parametrize("seed", range(4))
def test_warp_is_pillows_affine_about_the_middle(seed):
    example, draw = make_example(48, 64), rng(seed)
    matrix = draw.uniform(-1, 1, (2, 2)) + np.eye(2)
    inverse, middle = np.linalg.inv(matrix), np.array([32, 24])
    coefficients = np.concatenate([inverse, (middle - inverse @ middle)[:, None]], axis=1).ravel()
    for key in ("frames", "objects"):
        warped = transforms.warp(example[key], matrix)
        for index in range(3):
            expected = Image.fromarray(example[key][index]).transform(
                (64, 48), Image.Transform.AFFINE, tuple(coefficients), Image.Resampling.NEAREST
            )
            # Pillow's fixed-point numbers put a pixel on the border of two into the other one.
            same = warped[index] == np.asarray(expected)
            assert same.mean() > 0.999


@pytest.mark.parametrize("seed", range(6))
def test_affine_moves_frames_and_masks_together(seed):
    example = make_example(48, 64)
    moved = transforms.Affine(20, (0.5, 1.0), 10).random_map(example, rng(seed))
    assert moved["label"].dtype == np.int32
    np.testing.assert_array_equal(moved["label"], moved["objects"])
    inside = moved["frames"].any(-1)
    np.testing.assert_array_equal(
        moved["frames"][..., 0], np.where(inside, 20 * moved["label"] + 10, 0)
    )
    assert not moved["label"][~inside].any()
    assert (moved["frames"] != example["frames"]).any()


def test_affine_turns_zooms_and_shears_within_its_bounds():
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)
    # A thin horizontal and a thin vertical bar through the middle tell both axes' directions.
    for name, bar in (("across", np.abs(y) < 1), ("down", np.abs(x) < 1)):
        element = {"frames": np.repeat(bar[None, ..., None], 3, -1).astype(np.uint8)}
        found = []
        for seed in range(60):
            moved = transforms.Affine(30, (0.5, 1.0), 10).random_map(element, rng(seed))
            rows, columns = np.nonzero(moved["frames"][0, ..., 0])
            along = (rows - 31.5, columns - 31.5)[:: 1 if name == "down" else -1]
            found.append((np.degrees(np.arctan(np.polyfit(*along, 1)[0])), np.ptp(along[0])))
        angles, lengths = np.transpose(found)
        most = 30 if name == "across" else 40  # shear tilts what is upright
        assert -most - 1 < angles.min() < -15 and 15 < angles.max() < most + 1
        assert lengths.min() < 40 and lengths.max() > 50


def test_affine_is_left_out_unless_asked_for():
    kinds = [type(t) for t in transforms.train_transforms(24)]
    assert transforms.Affine not in kinds
    affine = transforms.train_transforms(24, rotate=20, zoom=[0.5, 1.0], shear=10)[1]
    assert affine == transforms.Affine(20, (0.5, 1.0), 10)


def test_one_draw_is_shared_by_all_frames_of_a_clip():
    example = make_example(48, 64)
    example["label"][:] = example["label"][0]
    example["frames"][:] = example["frames"][0]
    for transform in transforms.train_transforms(32, scale=(0.7, 1.5), rotate=20, brightness=0.4)[
        1:5
    ]:
        example = transform.random_map(example, rng(5))
    for key in ("frames", "label"):
        np.testing.assert_array_equal(example[key][1], example[key][0])
        np.testing.assert_array_equal(example[key][2], example[key][0])


def test_without_augmentation_a_square_clip_passes_through():
    example = make_example()
    out = example
    for transform in transforms.train_transforms(24, flip=0.0)[1:]:
        out = transform.random_map(out, rng())
    for key, value in example.items():
        np.testing.assert_array_equal(out[key], value)


def test_transforms_leave_their_input_alone():
    example = make_example()
    before = {key: np.copy(value) for key, value in example.items()}
    for transform in transforms.train_transforms(
        16, flip=1.0, scale=(0.7, 1.4), rotate=20, brightness=0.3, gain_db=(-6, 6), gain_chance=1
    )[1:]:
        transform.random_map(example, rng(1))
    transforms.Resize(13).map(example)
    for key, value in before.items():
        np.testing.assert_array_equal(example[key], value)


def test_random_placement_reaches_both_borders():
    example = make_example(24, 48)
    lefts = {
        int(transforms.ScaleCrop(24).random_map(example, rng(s))["frames"][0, 0, 0, 1])
        for s in range(200)
    }
    assert {min(lefts), max(lefts)} == {0, 24}


def test_resize_gives_up_the_aspect_ratio_and_keeps_ids():
    example = make_example(48, 96)
    small = transforms.Resize(24).map(example)
    assert small["frames"].shape == (3, 24, 24, 3)
    assert small["label"].shape == (3, 24, 24)
    assert set(np.unique(small["label"])) <= set(np.unique(example["label"]))
    # Blocks of 8 x 8 become 4 x 2 pixels, exactly.
    np.testing.assert_array_equal(small["label"], example["label"][:, 1::2, 2::4])


def test_nearest_takes_the_pixel_in_which_the_centre_lies():
    masks = np.arange(6)[None, None, :].repeat(6, 1)
    np.testing.assert_array_equal(transforms.resize_masks(masks, 6, 3)[0, 0], [1, 3, 5])
    np.testing.assert_array_equal(
        transforms.resize_masks(masks, 6, 12)[0, 0], np.repeat(np.arange(6), 2)
    )
    flipped = transforms.resize_masks(masks[:, :, ::-1], 6, 4)
    np.testing.assert_array_equal(flipped, 5 - transforms.resize_masks(masks, 6, 4))


def test_shrinking_does_not_alias():
    stripes = np.zeros((1, 32, 32, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = transforms.resize_frames(stripes, 8, 8)
    assert small.min() >= 127 and small.max() <= 128


def test_colour_jitter_does_what_its_factors_say():
    tolerance = 0.5 + 0.25  # rounding, and OpenCV's fixed point: 10 bits for a factor
    frames = rng().integers(60, 180, (2, 4, 5, 3)).astype(np.uint8)
    grey = frames @ np.array([0.299, 0.587, 0.114])
    brighter = transforms.jitter_colour(frames, 1.2, 1.0, 1.0)
    np.testing.assert_allclose(brighter, frames * 1.2, atol=tolerance)
    dull = transforms.jitter_colour(frames, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(dull, grey[..., None].repeat(3, -1), atol=tolerance)
    flat = transforms.jitter_colour(frames, 1.0, 0.0, 1.0)
    np.testing.assert_allclose(flat, np.full(frames.shape, grey.mean()), atol=tolerance)


def test_colours_are_held_within_bytes():
    frames = np.array([0, 255], np.uint8).repeat(6).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(transforms.jitter_colour(frames, 1.5, 1.0, 1.0), frames)


def test_gain_is_in_decibels():
    example = make_example()
    louder = transforms.Gain((6.0, 6.0), 1.0).random_map(example, rng())
    expected = np.clip(example["waveform"] * 10**0.3, -1, 1)
    np.testing.assert_allclose(louder["waveform"], expected, rtol=1e-6)
    assert louder["waveform"].dtype == np.float32


def test_training_never_sees_the_silent_objects():
    example = make_example()
    assert "objects" not in transforms.train_transforms(24)[0].map(example)


def test_evaluation_without_a_size_changes_nothing():
    assert transforms.eval_transforms(None) == []


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: transforms.Resize(0), "size=0"),
        (lambda: transforms.ScaleCrop(8, (1.2, 0.8)), r"scale=\(1.2, 0.8\)"),
        (lambda: transforms.ScaleCrop(8, (0.0, 0.8)), "scale"),
        (lambda: transforms.Gain((3, -3)), "decibels"),
        (lambda: transforms.ColourJitter(contrast=1.5), "contrast=1.5"),
        (lambda: transforms.Flip(2), "chance=2"),
        (lambda: transforms.Affine(200), "rotate=200"),
        (lambda: transforms.Affine(zoom=(0, 1)), "zoom"),
        (lambda: transforms.Affine(shear=-5), "shear=-5"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(errors.BadValueError, match=said):
        make()


@pytest.mark.parametrize(("height", "width"), [(54, 96), (96, 54), (48, 48), (56, 100), (135, 240)])
def test_centre_crop_is_where_avsbench_has_it(height, width):
    example = make_example(height // 8 * 8, width // 8 * 8)
    height, width = example["label"].shape[1:]
    cropped = transforms.CentreCrop(32).map(example)
    # The published loader: Pillow, nearest for labels, bilinear for frames.
    if width > height:
        size = (int(32 * width / height), 32)
    else:
        size = (32, int(32 * height / width))
    left, top = (round((side - 32) / 2) for side in size)
    box = (left, top, left + 32, top + 32)
    for index in range(3):
        label = Image.fromarray(example["label"][index].astype(np.uint8))
        expected = label.resize(size, Image.Resampling.NEAREST).crop(box)
        np.testing.assert_array_equal(cropped["label"][index], np.asarray(expected))
        frame = Image.fromarray(example["frames"][index])
        expected = frame.resize(size, Image.Resampling.BILINEAR).crop(box)
        # Green is a smooth ramp, which tells the place whatever the filter.
        ours, theirs = cropped["frames"][index][..., 1], np.asarray(expected)[..., 1]
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_training_takes_the_centre_when_asked():
    transform = transforms.train_transforms(16, centre=True)[1]
    assert transform == transforms.CentreCrop(16)


def test_centre_and_scale_exclude_each_other():
    with pytest.raises(errors.BadValueError, match="needs a random piece"):
        transforms.train_transforms(16, centre=True, scale=(0.5, 2.0))
