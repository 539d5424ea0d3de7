"""Clips to calibrate on: of any length, size and number, from wherever they are."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.exporting import clips

DATA = ml_collections.FrozenConfigDict({"name": "stamps", "subset": "ms3", "data_dir": "nowhere"})


def inputs(b=1, t=2, side=32):
    return {
        "frames": jax.ShapeDtypeStruct((b, t, side, side, 3), jnp.uint8),
        "waveform": jax.ShapeDtypeStruct((b, 16_000 * t), jnp.float32),
    }


def test_without_the_data_set_clips_are_drawn_and_it_is_said(capsys):
    found = clips.take_clips(DATA, inputs(b=2), count=6)
    assert len(found) == 3
    for clip in found:
        for name, wanted in inputs(b=2).items():
            assert (clip[name].shape, clip[name].dtype) == (wanted.shape, wanted.dtype)
    assert (found[0]["frames"] != found[1]["frames"]).any()
    assert "No stamps in nowhere: calibrated on drawings" in capsys.readouterr().err


def test_two_batches_are_taken_however_large(monkeypatch):
    frames, sound = np.zeros((5, 8, 8, 3), np.uint8), np.zeros(80_000, np.float32)
    monkeypatch.setattr(clips, "_draw", lambda index: (frames, sound))
    assert len(clips.take_clips(DATA, inputs(b=3), count=2)) == 2


def test_a_clip_that_is_too_short_begins_again_without_what_pads_it(monkeypatch):
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    example = {
        "frames": frames,
        "waveform": np.repeat(np.float32([0.1, 0.2, 0.0]), 16_000),
        "frame_mask": np.array([True, True, False]),
    }
    monkeypatch.setattr(clips, "open_split", lambda *_: [example])
    clip = clips.take_clips(DATA, inputs(t=5), count=2)[0]
    assert clip["frames"][0, :, 0, 0, 0].tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(clip["waveform"][0, 8000::16_000], [0.1, 0.2, 0.1, 0.2, 0.1])


def test_a_folder_that_was_named_has_to_have_them(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no stamps/ms3 under"):
        clips.take_clips(DATA, inputs(), tmp_path)


def test_clips_of_stamps_are_taken_where_they_are_said_to_be(media, capsys):
    found = clips.take_clips(DATA, inputs(t=5, side=64), media, count=2)
    assert found[0]["frames"].std() > 10 and found[0]["waveform"].std() > 0
    assert capsys.readouterr().err == ""
