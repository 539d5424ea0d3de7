"""Pictures: what is painted where, and that every kind is made."""

import json

import numpy as np
import pytest
from PIL import Image

from avs_jax import errors, visualize
from avs_jax.data.classes import PALETTE


def grey_frame(height=40, width=60):
    return np.full((height, width, 3), 100, np.uint8)


def block(height=40, width=60):
    mask = np.zeros((height, width), bool)
    mask[10:30, 20:50] = True
    return mask


def test_palette_is_avsbench_s():
    np.testing.assert_array_equal(visualize.palette(71), PALETTE)
    assert len(np.unique(visualize.palette(256), axis=0)) == 256


def test_overlay_leaves_the_background_alone():
    picture = visualize.overlay(grey_frame(), block())
    far = np.ones((40, 60), bool)
    far[8:32, 18:52] = False
    assert (picture[far] == 100).all()


def test_overlay_tints_the_inside():
    picture = visualize.overlay(grey_frame(), block(), alpha=0.5)
    expected = (100 + visualize.BINARY_COLOURS[1].astype(int)) / 2
    np.testing.assert_allclose(picture[20, 35], expected, atol=1)


def test_overlay_draws_the_outline_in_the_colour_and_white():
    picture = visualize.overlay(grey_frame(), block())
    assert (picture[10, 35] == visualize.BINARY_COLOURS[1]).all()
    assert (picture[9, 35] == 255).all()


def test_overlay_does_not_change_its_frame():
    frame = grey_frame()
    visualize.overlay(frame, block())
    assert (frame == 100).all()


def test_overlay_of_nothing_is_the_frame():
    np.testing.assert_array_equal(
        visualize.overlay(grey_frame(), np.zeros((40, 60), bool)), grey_frame()
    )


def test_overlay_gives_each_class_its_colour():
    ids = block().astype(np.uint8) * 4
    ids[:, 35:] *= 2
    picture = visualize.overlay(grey_frame(), ids, alpha=1.0)
    assert (picture[20, 28] == PALETTE[4]).all()
    assert (picture[20, 42] == PALETTE[8]).all()


def test_overlay_of_another_size_is_an_error():
    with pytest.raises(errors.BadValueError, match=r"\(10, 10\) .*\(40, 60\)"):
        visualize.Overlay(np.ones((10, 10), bool))(grey_frame())


def test_class_without_a_colour_is_an_error():
    with pytest.raises(errors.BadValueError, match="class 7, but there are 3 colours"):
        visualize.overlay(grey_frame(), 7 * block().astype(np.uint8), visualize.palette(3))


def test_legend_names_what_is_marked():
    ids = np.zeros((200, 300), np.uint8)
    ids[50:100, 200:250] = 2
    plain = visualize.Overlay(ids)(grey_frame(200, 300))
    named = visualize.Overlay(ids, class_names=["-", "dog", "cat"])(grey_frame(200, 300))
    changed = np.argwhere((plain != named).any(-1))
    assert changed.min(0)[0] > 150  # at the foot of the frame
    assert changed.max(0)[1] < 150  # on its left
    assert (named == PALETTE[2]).all(-1)[150:].any()


def example_strip(**options):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    truth = np.zeros((3, 48, 64), np.int32)
    truth[0, 10:20, 10:40] = 2
    return visualize.strip(frames, **({"truth": truth, "prediction": truth} | options))


def test_strip_has_a_column_a_second_and_a_row_for_each_thing():
    full = example_strip(waveform=np.zeros(48_000, np.float32))
    deaf = example_strip()
    blind = example_strip(truth=None)
    assert full.shape[1] == deaf.shape[1] > 3 * 144
    assert full.shape[0] > deaf.shape[0] > blind.shape[0] > 2 * 108


def test_strip_marks_in_one_colour_where_masks_are_binary():
    def has(picture, colour):
        return (np.abs(picture.astype(int) - colour).max(-1) == 0).any()

    binary = example_strip()
    semantic = example_strip(binary=False, class_names=["-", "dog", "cat"])
    assert has(binary, visualize.BINARY_COLOURS[1])
    assert not has(binary, PALETTE[2])
    assert has(semantic, PALETTE[2])
    assert semantic.shape[1] > binary.shape[1]  # the legend


def test_strip_takes_a_sound_that_is_too_short():
    assert example_strip(waveform=np.ones(20_000, np.float32)).any()


def test_contact_sheet_is_a_grid():
    pictures = [np.full((h, w, 3), 10, np.uint8) for h, w in ((10, 20), (30, 15), (5, 5))]
    sheet = visualize.contact_sheet(pictures, columns=2, gap=4)
    assert sheet.shape == (30 + 5 + 3 * 4, 20 + 15 + 3 * 4, 3)
    assert (sheet == 10).all(-1).sum() == 10 * 20 + 30 * 15 + 5 * 5


def test_contact_sheet_of_nothing_is_an_error():
    with pytest.raises(errors.BadValueError, match="at least one picture"):
        visualize.contact_sheet([])


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9)])
def test_png_comes_back_as_it_was(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    visualize.write_png(tmp_path / "new" / "a.png", picture)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == ("RGB" if len(shape) == 3 else "L")
        np.testing.assert_array_equal(np.asarray(image), picture)


def write_log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    return path


@pytest.mark.parametrize("count", [1, 2, 200])
def test_learning_curve_is_drawn_of_short_and_long_runs(tmp_path, count):
    lines = [
        {"step": s, "time": 1.0, "train/loss": 1 / (s + 1), "train/seconds": 2.0 * s}
        for s in range(count)
    ] + [{"step": count, "validation/miou": 0.5}]
    visualize.learning_curve(write_log(tmp_path / "log.jsonl", lines), tmp_path / "x" / "curve.png")
    with Image.open(tmp_path / "x" / "curve.png") as image:
        assert min(image.size) > 400


def test_learning_curve_without_validation_has_one_panel(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [{"step": s, "train/loss": 1.0} for s in range(3)])
    visualize.learning_curve(log, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > image.size[1]


def test_learning_curve_of_no_log_is_an_error(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"no log .*none\.jsonl"):
        visualize.learning_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")


def test_learning_curve_of_an_empty_log_is_an_error(tmp_path):
    with pytest.raises(errors.BadValueError, match="holds no train/loss"):
        visualize.learning_curve(write_log(tmp_path / "log.jsonl", []), tmp_path / "curve.png")
