"""Films with boxes: what is read, and figures that can be told beforehand."""

import json

import numpy as np
import pytest

from avs_jax import errors, evaluate
from avs_jax.scoring import real
from tests.media import film
from tests.weights.zoo import stand_in

RED_CORNER = [[0.0, 0.0, 0.5, 0.5]]  # of film.quadrants
GREEN_CORNER = [[0.5, 0.0, 1.0, 0.5]]


def beep(hertz):
    return lambda times: 0.5 * np.sin(2 * np.pi * hertz * times)


@pytest.fixture
def folder(tmp_path):
    """Two films of four coloured corners: in one red sounds, high, in the other green, low."""
    for name, hertz in (("red", 3000), ("green", 300)):
        film.write_film(
            tmp_path / f"{name}.mp4",
            seconds=3,
            picture=film.quadrants,
            size=(64, 48),
            sound=beep(hertz),
        )
    boxes = {"red": {"0.5": RED_CORNER, "2": RED_CORNER}, "green": {"1.5": GREEN_CORNER}}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def colours(frames):
    frames = frames.astype(int)
    red = (frames[..., 0] > 150) & (frames[..., 1] < 100)
    green = (frames[..., 1] > 150) & (frames[..., 0] < 100)
    return red, green


def listener(frames, times, sound):
    """Marks the red corner of a high tone and the green one of a low one, in any film."""
    spectrum = np.abs(np.fft.rfft(sound))
    pitch = np.fft.rfftfreq(len(sound), 1 / 16_000)[spectrum.argmax()]
    is_tone = spectrum.max() > 20 * np.median(spectrum) + 1
    red, green = colours(frames)
    return np.where(is_tone * (red if pitch > 1000 else green), 0.9, 0.1).astype(np.float32)


def deaf(frames, times, sound):
    """The first film's red, whatever is heard, a little brighter to the left."""
    red, _ = colours(frames)
    slope = np.linspace(0.9, 0.6, frames.shape[2], dtype=np.float32)
    return np.where(red, slope, 0.1).astype(np.float32)


def test_films_are_read_with_their_boxes_and_sound(folder):
    red, green = real.read_films(folder)
    assert (red.name, red.kind) == ("red", "red")
    assert red.times.tolist() == [0.5, 2.0]
    assert red.frames.shape == (2, 48, 64, 3)
    assert green.boxes[0].tolist() == GREEN_CORNER
    assert abs(len(red.sound) - 48_000) < 2_000


def test_who_listens_points_right_wherever_the_sound_comes_from(folder):
    figures = real.score(real.read_films(folder), listener, 0.5)
    assert figures["seconds"] == 3
    assert figures["pointing"] == 1
    assert figures["precision"] > 0.9
    assert figures["chance"] == 0.25
    assert figures["marked_own"] == pytest.approx(0.25, abs=0.03)
    assert figures["marked_mute"] == figures["marked_noise"] == 0


def test_beside_each_other_what_is_heard_decides():
    def make(name, colour, hertz):
        frames = np.zeros((1, 40, 40, 3), np.uint8)
        frames[:, 10:20, 10:20] = colour
        sound = beep(hertz)(np.arange(16_000) / 16_000).astype(np.float32)
        box = np.array([[0.25, 0.25, 0.5, 0.5]])
        return real.Film(name, name, frames, np.array([0.5]), (box,), sound)

    films = [make("a", (255, 0, 0), 3000), make("b", (0, 255, 0), 300)]
    hears = real.score(films, listener, 0.5)
    assert hears["side_by_side_cases"] == 4
    assert hears["side_by_side_half"] == hears["side_by_side_box"] == 1
    cannot = real.score(films, deaf, 0.5)
    assert cannot["side_by_side_half"] == 0.5
    assert cannot["pointing"] == 0.5
    assert cannot["marked_other"] == cannot["marked_own"] > 0.02


def test_films_of_one_kind_are_not_held_against_each_other(folder):
    films = [film._replace(kind="toy") for film in real.read_films(folder)]
    figures = real.score(films, listener, 0.5)
    assert figures["side_by_side_cases"] == 0
    assert "marked_other" not in figures


def test_passes_are_counted_beforehand(folder):
    calls = []

    def mark(*inputs):
        calls.append(inputs)
        return deaf(*inputs)

    others = {"whistle": np.ones(16_000, np.float32)}
    films = real.read_films(folder)
    real.score(films, mark, 0.5, others)
    assert len(calls) == real.count_passes(films, others)


def test_sounds_that_no_picture_shows_are_marked_apart(folder):
    (folder / "sounds").mkdir()
    film.write_film(folder / "sounds" / "whistle.wav", picture=None, sound_codec="pcm_s16le")
    others = real.read_other_sounds(folder)
    figures = real.score(real.read_films(folder), listener, 0.5, others)
    assert figures["marked_whistle"] == pytest.approx(0.25, abs=0.03)  # 440 Hz: low


def test_where_nothing_stands_out_nothing_is_pointed_at():
    inside = np.ones((4, 4), bool)
    assert not real.points_into(np.full((4, 4), 0.2, np.float32), inside)
    assert real.points_into(np.eye(4, dtype=np.float32), inside)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (None, "no .*boxes.json"),
        ("{", "is not JSON"),
        ({}, "names no films"),
        ({"blue": {"1": RED_CORNER}}, "no film 'blue' in .*: expected blue.mp4"),
        ({"red": {}}, "boxes of film 'red': none"),
        ({"red": {"1": []}}, "boxes of film 'red': .* at 1.0; wanted"),
        ({"red": {"1": [[0, 0, 1, 1.5]]}}, "at 1.0; wanted"),
        ({"red": {"1": [[0.5, 0, 0.2, 1]]}}, "x0 < x1"),
        ({"red": {"one": RED_CORNER}}, "cannot be read: could not convert"),
        ({"red": {"9": RED_CORNER}}, "ends before second 9"),
        ({"red": 3}, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, boxes, message):
    if boxes is None:
        (folder / "boxes.json").unlink()
    else:
        text = boxes if isinstance(boxes, str) else json.dumps(boxes)
        (folder / "boxes.json").write_text(text)
    with pytest.raises(errors.InputError, match=message) as caught:
        real.read_films(folder)
    assert "\n" not in str(caught.value)


def test_program_scores_the_model_of_the_package(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "zoo").mkdir()
    stand_in.write(tmp_path / "zoo", monkeypatch)
    monkeypatch.setattr(evaluate.devices, "start_jax", lambda: None)
    evaluate.main(["--real", str(folder), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| points into a box (chance 0.25) |" in printed
    figures = json.loads(printed.splitlines()[-1])
    assert figures["checkpoint"] == "lite"
    assert 0 < figures["marked_own"] < 1
    assert json.loads((tmp_path / "out" / "real_lite.json").read_text()) == figures
