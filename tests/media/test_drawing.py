"""Pictures: what is painted where, and that every kind is made."""

import numpy as np
import pytest
from PIL import Image

from avs_jax import errors
from avs_jax.data.avsbench.classes import PALETTE
from avs_jax.media import drawing


def grey_frame(height=40, width=60):
    return np.full((height, width, 3), 100, np.uint8)


def block(height=40, width=60):
    mask = np.zeros((height, width), bool)
    mask[10:30, 20:50] = True
    return mask


def test_palette_is_avsbench_s():
    np.testing.assert_array_equal(drawing.palette(71), PALETTE)
    assert len(np.unique(drawing.palette(256), axis=0)) == 256


def test_overlay_leaves_the_background_alone():
    picture = drawing.overlay(grey_frame(), block())
    far = np.ones((40, 60), bool)
    far[8:32, 18:52] = False
    assert (picture[far] == 100).all()


def test_overlay_tints_the_inside():
    picture = drawing.overlay(grey_frame(), block(), alpha=0.5)
    expected = (100 + drawing.BINARY_COLOURS[1].astype(int)) / 2
    np.testing.assert_allclose(picture[20, 35], expected, atol=1)


def test_overlay_draws_the_outline_in_the_colour_and_white():
    picture = drawing.overlay(grey_frame(), block())
    assert (picture[10, 35] == drawing.BINARY_COLOURS[1]).all()
    assert (picture[9, 35] == 255).all()


def test_overlay_does_not_change_its_frame():
    frame = grey_frame()
    drawing.overlay(frame, block())
    assert (frame == 100).all()


def test_overlay_of_whole_rows_does_not_change_its_frame():
    frame = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:10] = True  # the part that is drawn on lies in one piece
    drawn = drawing.Overlay(mask)(frame)
    assert (frame == 100).all() and (drawn[7] != 100).any()


def test_overlay_of_nothing_is_the_frame():
    np.testing.assert_array_equal(
        drawing.overlay(grey_frame(), np.zeros((40, 60), bool)), grey_frame()
    )


def test_overlay_gives_each_class_its_colour():
    ids = block().astype(np.uint8) * 4
    ids[:, 35:] *= 2
    picture = drawing.overlay(grey_frame(), ids, alpha=1.0)
    assert (picture[20, 28] == PALETTE[4]).all()
    assert (picture[20, 42] == PALETTE[8]).all()


def test_overlay_of_another_size_is_an_error():
    with pytest.raises(errors.BadValueError, match=r"\(10, 10\) .*\(40, 60\)"):
        drawing.Overlay(np.ones((10, 10), bool))(grey_frame())


def test_class_without_a_colour_is_an_error():
    with pytest.raises(errors.BadValueError, match="class 7, but there are 3 colours"):
        drawing.overlay(grey_frame(), 7 * block().astype(np.uint8), drawing.palette(3))


def test_legend_names_what_is_marked():
    ids = np.zeros((200, 300), np.uint8)
    ids[50:100, 200:250] = 2
    plain = drawing.Overlay(ids)(grey_frame(200, 300))
    named = drawing.Overlay(ids, class_names=["-", "dog", "cat"])(grey_frame(200, 300))
    changed = np.argwhere((plain != named).any(-1))
    assert changed.min(0)[0] > 150  # at the foot of the frame
    assert changed.max(0)[1] < 150  # on its left
    assert (named == PALETTE[2]).all(-1)[150:].any()


def example_strip(**options):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    truth = np.zeros((3, 48, 64), np.int32)
    truth[0, 10:20, 10:40] = 2
    return drawing.strip(frames, **({"truth": truth, "prediction": truth} | options))


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
    assert has(binary, drawing.BINARY_COLOURS[1])
    assert not has(binary, PALETTE[2])
    assert has(semantic, PALETTE[2])
    assert semantic.shape[1] > binary.shape[1]  # the legend


def test_strip_takes_a_sound_that_is_too_short():
    assert example_strip(waveform=np.ones(20_000, np.float32)).any()


GREY = np.full((2, 48, 48, 3), 100, np.uint8)  # drawn 144 x 144; in rows of masks it is 60
CELL, GAP, TOP = 144, 6, 24


def colour_at(picture, y, second, row, column, grid=2):
    """The pixel in the middle of a cell of a `grid` x `grid` mask, in a row that starts at `y`."""
    left = np.flatnonzero((picture[TOP + 5] == 100).all(-1))[0]
    place = [round((k + 0.5) * CELL / grid) for k in (row, column)]
    return picture[y + place[0], left + second * (CELL + GAP) + place[1]].astype(int)


def tint(colour):
    return 0.25 * 60 + 0.75 * np.asarray(colour, float)


def test_confidence_strip_paints_certain_and_uncertain_cells():
    answers = np.zeros((2, 2, 2), np.int32)
    answers[0, 0, 0] = 3
    uncertain = np.zeros((2, 2, 2), bool)
    uncertain[0, 1, 1] = uncertain[1, 0, 1] = True
    picture = drawing.confidence_strip(GREY, None, {"coarse": answers}, {"coarse": uncertain})
    y = TOP + CELL + GAP
    pink = drawing.BINARY_COLOURS[1]
    np.testing.assert_allclose(colour_at(picture, y, 0, 0, 0), tint(pink), atol=1)
    np.testing.assert_allclose(colour_at(picture, y, 0, 1, 1), tint(drawing.ASKING), atol=1)
    np.testing.assert_allclose(colour_at(picture, y, 1, 0, 1), tint(drawing.ASKING), atol=1)
    for second, row, column in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)):
        assert (colour_at(picture, y, second, row, column) == 60).all()


def test_confidence_strip_writes_the_share_that_is_uncertain(monkeypatch):
    written = []
    monkeypatch.setattr(
        drawing, "_write", lambda texts, width: written.append(texts) or [GREY[0]] * len(texts)
    )
    uncertain = np.zeros((2, 2, 2), bool)
    uncertain[1, 0] = True
    answers = {"a": np.zeros((2, 2, 2), np.int32), "b": np.zeros((2, 4, 4), np.int32)}
    drawing.confidence_strip(GREY, None, answers, {"a": uncertain})
    assert written == [["0% uncertain", "50% uncertain"]]


def test_confidence_strip_gives_classes_their_colours():
    answers = np.full((2, 2, 2), 4, np.int32)
    names = ["-", "dog", "cat", "cow", "ant"]
    picture = drawing.confidence_strip(
        GREY, None, {"stage": answers}, {}, class_names=names, binary=False
    )
    y = TOP + CELL + GAP
    np.testing.assert_allclose(colour_at(picture, y, 1, 1, 0), tint(PALETTE[4]), atol=1)


def listen(attention, **heard):
    heard = {name: (ids, np.zeros(32_000, np.float32)) for name, ids in heard.items()}
    return drawing.listening_strip(GREY, None, attention, ["query 1", "query 2"], heard)


def test_listening_strip_is_brightest_where_the_query_looks():
    attention = np.zeros((2, 2, 2), np.float32)
    attention[0, 0, 1], attention[1, 1, 0] = 0.02, 0.01
    picture = listen(attention, own=np.zeros((2, 48, 48), np.int32))
    light = [
        [[colour_at(picture, TOP + CELL + GAP, k, i, j).sum() for j in (0, 1)] for i in (0, 1)]
        for k in (0, 1)
    ]
    most, half = light[0][0][1], light[1][1][0]
    least = [light[0][0][0], light[0][1][0], light[0][1][1], light[1][0][0], light[1][0][1]]
    assert most > half + 60 > max(least) + 120


def test_listening_strip_shows_the_masks_of_each_sound_in_their_order():
    own, silent = np.zeros((2, 2, 48, 48), np.int32)
    own[1, :24, :24] = 1
    picture = listen(np.ones((2, 2, 2), np.float32), own=own, silent=silent)
    first = TOP + 2 * (CELL + GAP) + 18 + GAP  # under the frames, the attention and its notes
    second = first + CELL + GAP + 18 + GAP + 40 + 33 + GAP  # under the masks, shares and the sound
    pink = tint(drawing.BINARY_COLOURS[1])
    np.testing.assert_allclose(colour_at(picture, first, 1, 0, 0), pink, atol=1)
    assert (colour_at(picture, first, 0, 0, 0) == 60).all()
    assert (colour_at(picture, second, 1, 0, 0) == 60).all()


def tone(frequency):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(16_000) / 16_000).astype(np.float32)


def test_spectrogram_shows_a_sound_in_its_second():
    waveform = np.concatenate([np.zeros(16_000, np.float32), tone(1000), 0 * tone(1)])
    picture = drawing.draw_spectrogram(waveform, 3, 32, 120).astype(int)
    loud = picture.sum(-1).max(0)  # of each column
    assert loud[42:78].min() > 300 > 100 > loud[:38].max()
    assert loud[82:].max() < 100


def test_spectrogram_has_high_tones_above_low_ones():
    rows = []
    for frequency in (300, 1500, 6000):
        picture = drawing.draw_spectrogram(tone(frequency), 1, 64, 40)
        rows.append(int(picture.astype(int).sum(-1).mean(1).argmax()))
    assert rows[0] > rows[1] + 10 > rows[2] + 20


def test_contact_sheet_is_a_grid():
    pictures = [np.full((h, w, 3), 10, np.uint8) for h, w in ((10, 20), (30, 15), (5, 5))]
    sheet = drawing.contact_sheet(pictures, columns=2, gap=4)
    assert sheet.shape == (30 + 5 + 3 * 4, 20 + 15 + 3 * 4, 3)
    assert (sheet == 10).all(-1).sum() == 10 * 20 + 30 * 15 + 5 * 5


def test_contact_sheet_of_nothing_is_an_error():
    with pytest.raises(errors.BadValueError, match="at least one picture"):
        drawing.contact_sheet([])


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9)])
def test_png_comes_back_as_it_was(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    drawing.write_png(tmp_path / "new" / "a.png", picture)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == ("RGB" if len(shape) == 3 else "L")
        np.testing.assert_array_equal(np.asarray(image), picture)
