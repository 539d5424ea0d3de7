"""Decoding pictures: the same pixels as other decoders, whatever came before, in every thread."""

import concurrent.futures
import io

import cv2
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from avs_jax.data import decoding


def draw(seed=0, channels=3):
    shape = (24, 31, channels) if channels > 1 else (24, 31)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels, form="PNG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_has_the_pixels_that_were_put_in(channels):
    pixels = draw(channels=channels)
    np.testing.assert_array_equal(
        decoding.decode_picture(encode(pixels)), pixels.reshape(24, 31, channels)
    )


@pytest.mark.parametrize("filter_name", ["NONE", "SUB", "UP", "AVG", "PAETH"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_png_of_every_filter_and_level(filter_name, level):
    pixels = draw()
    flags = (cv2.IMWRITE_PNG_COMPRESSION, level)
    flags += (cv2.IMWRITE_PNG_FILTER, getattr(cv2, f"IMWRITE_PNG_FILTER_{filter_name}"))
    data = cv2.imencode(".png", pixels[..., ::-1], flags)[1].tobytes()
    np.testing.assert_array_equal(decoding.decode_picture(data), pixels)


def test_small_class_ids_survive():
    pixels = np.arange(71, dtype=np.uint8).reshape(1, 71)
    np.testing.assert_array_equal(decoding.decode_picture(encode(pixels))[..., 0], pixels)


@pytest.mark.parametrize("kind", ["jpeg", "png", "grey", "palette", "one bit", "16 bits"])
def test_pixels_are_those_of_tensorflow_datasets(kind):
    data = {
        "jpeg": lambda: encode(draw(), "JPEG"),
        "png": lambda: encode(draw()),
        "grey": lambda: encode(draw(channels=1)),
        "palette": lambda: _convert("P"),
        "one bit": lambda: _convert("1"),
        "16 bits": lambda: cv2.imencode(".png", draw().astype(np.uint16) * 257)[1].tobytes(),
    }[kind]()
    found = decoding.decode_picture(data)
    dtype = np.uint16 if kind == "16 bits" else np.uint8
    image = tfds.features.Image(
        shape=(None, None, found.shape[2]), dtype=dtype, encoding_format="png"
    )
    np.testing.assert_array_equal(found, image.decode_example_np(data))


def _convert(mode):
    file = io.BytesIO()
    PIL.Image.fromarray(draw()).convert(mode).save(file, "PNG")
    return file.getvalue()


def test_no_picture_depends_on_the_one_before():
    pictures = [draw(seed) for seed in range(4)] + [draw(9, channels=1)]
    for index in (0, 1, 0, 4, 2, 4, 3, 3):
        found = decoding.decode_picture(encode(pictures[index]))
        np.testing.assert_array_equal(found.squeeze(), pictures[index])


def test_pixels_stay_when_the_next_picture_is_decoded():
    first = decoding.decode_picture(encode(draw(0)))
    decoding.decode_picture(encode(draw(1)))
    np.testing.assert_array_equal(first, draw(0))


def test_threads_do_not_share_a_decoder():
    encoded = [encode(draw(seed)) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for seed, found in enumerate(pool.map(decoding.decode_picture, encoded)):
                np.testing.assert_array_equal(found, draw(seed))


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"<html>", encode(draw())[:40]])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decoding.decode_picture(data)


def test_whole_pictures_are_decoded_after_a_damaged_one():
    with pytest.raises(ValueError):
        decoding.decode_picture(encode(draw())[:40])
    np.testing.assert_array_equal(decoding.decode_picture(encode(draw())), draw())


def test_features_keep_their_names_and_everything_but_pictures():
    given = tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "id": tfds.features.Text(),
        }
    )
    found = decoding.with_fast_pictures(given)
    assert isinstance(found["frames"].feature, decoding.Picture) and found["id"] is given["id"]
    frames = [io.BytesIO(encode(draw(seed))) for seed in range(2)]
    record = given.serialize_example({"frames": frames, "id": "x"})
    for seed, frame in enumerate(found.deserialize_example_np(record)["frames"]):
        np.testing.assert_array_equal(frame, draw(seed))
