"""Ways to break a clip of the miniature AVSBench, each with the finding that must come of it."""

import dataclasses
import io
import pathlib
import pickle
import shutil
from collections.abc import Callable

import cv2
import numpy as np
import PIL.Image

from avs_jax.data.avsbench import layouts
from avs_jax.data.avsbench.layouts import Clip
from tests.data.avsbench import mini_avsbench as mini


@dataclasses.dataclass(frozen=True)
class Fault:
    """`plant(clip)` breaks a clip and returns the file that must be named, as `kind`."""

    name: str
    subset: str
    kind: str
    plant: Callable[[Clip], str]


def _wav(seconds, rate=16_000, convert=lambda samples: samples):
    def plant(clip):
        samples = mini.draw_sound(clip.id, seconds, rate)
        mini.write_sound(pathlib.Path(clip.wav), rate, convert(samples))
        return clip.wav

    return plant


def _to_nan(samples):
    return samples * np.float32("nan")


def _delete(path):
    pathlib.Path(path).unlink()
    return path


def _cut(path, share):
    data = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(data[: int(share * len(data))])
    return path


def _write(path, data):
    pathlib.Path(path).write_bytes(data)
    return path


def _change(path, function):
    """Rewrites a picture; `function` gets and gives a PIL image."""
    with PIL.Image.open(path) as picture:
        changed, form = function(picture.copy()), picture.format
    buffer = io.BytesIO()
    changed.save(buffer, "JPEG" if path.endswith(".jpg") else form)
    return _write(path, buffer.getvalue())


def _convert(path, mode):
    return _change(path, lambda picture: picture.convert(mode))


def _deepen(path):
    pixels = cv2.imread(path).astype(np.uint16) * 257
    return _write(path, cv2.imencode(".png", pixels)[1].tobytes())


def _paint(path, colour):
    def paint(picture):
        picture.putpixel((3, 0), colour)
        return picture

    return _change(path, paint)


def _resize(path, size):
    return _change(path, lambda picture: picture.resize(size, PIL.Image.Resampling.NEAREST))


def _shrink(clip):
    for path in (*clip.frames, *clip.masks):
        _resize(path, (96, 96))
    return clip.frames[0]


def _remove_all(clip):
    for path in (*clip.frames, *clip.masks, *clip.colours, clip.wav):
        pathlib.Path(path).unlink(missing_ok=True)
    folder = pathlib.Path(clip.frames[0]).parent
    shutil.rmtree(folder)
    return str(folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


def _pickle(clip):
    return _write(clip.wav, pickle.dumps(Bomb(f"{clip.wav}.exploded")))


FAULTS = (
    Fault("no_files", "s4", "missing_clip", _remove_all),
    Fault("no_frame", "s4", "missing_frame", lambda clip: _delete(clip.frames[4])),
    Fault("no_mask", "s4", "missing_mask", lambda clip: _delete(clip.masks[3])),
    Fault("no_wav", "s4", "missing_wav", lambda clip: _delete(clip.wav)),
    Fault("cut_png", "s4", "unreadable_frame", lambda clip: _cut(clip.frames[1], 0.6)),
    Fault("cut_jpeg", "v2", "unreadable_frame", lambda clip: _cut(clip.frames[9], 0.7)),
    Fault("empty_jpeg", "v2", "unreadable_frame", lambda clip: _cut(clip.frames[0], 0)),
    Fault("page_as_frame", "v2", "unreadable_frame", lambda c: _write(c.frames[2], b"<html>")),
    Fault("cut_mask", "s4", "unreadable_mask", lambda clip: _cut(clip.masks[0], 0.5)),
    Fault("cut_label", "v2", "unreadable_mask", lambda clip: _cut(clip.masks[0], 0.5)),
    Fault("cut_wav_header", "s4", "unreadable_wav", lambda c: _write(c.wav, b"RIFF\0\0\0")),
    Fault("empty_file_as_wav", "s4", "unreadable_wav", lambda clip: _write(clip.wav, b"")),
    Fault("mp3_as_wav", "s4", "unreadable_wav", lambda clip: _write(clip.wav, b"ID3\3" * 90)),
    Fault("not_a_number", "s4", "unreadable_wav", _wav(5.02, convert=_to_nan)),
    Fault("pickle_as_wav", "s4", "pickled_wav", _pickle),
    Fault("torch_zip_as_wav", "s4", "pickled_wav", lambda c: _write(c.wav, b"PK\3\4" + bytes(99))),
    Fault("wav_of_0_s", "s4", "empty_wav", _wav(0)),
    Fault("other_frame_size", "s4", "frame_size", lambda clip: _resize(clip.frames[2], (200, 224))),
    Fault("other_mask_size", "s4", "mask_size", lambda clip: _resize(clip.masks[1], (112, 112))),
    Fault("turned_label", "v2", "mask_size", lambda clip: _resize(clip.masks[2], (54, 96))),
    Fault("small_clip", "s4", "not_224", _shrink),
    Fault("grey_frame", "s4", "frame_mode", lambda c: _convert(c.frames[0], "L")),
    Fault(
        "rgba_frame",
        "s4",
        "frame_mode",
        lambda c: _convert(c.frames[1], "RGBA"),
    ),
    Fault(
        "cmyk_frame",
        "v2",
        "frame_mode",
        lambda c: _convert(c.frames[1], "CMYK"),
    ),
    Fault(
        "white_rgb_mask",
        "s4",
        "mask_mode",
        lambda c: _convert(c.masks[0], "RGB"),
    ),
    Fault("one_bit_mask", "s4", "mask_mode", lambda c: _convert(c.masks[0], "1")),
    Fault("palette_mask", "s4", "mask_mode", lambda c: _convert(c.masks[0], "P")),
    Fault("deep_frame", "s4", "frame_mode", lambda clip: _deepen(clip.frames[0])),
    Fault("grey_pixel", "s4", "mask_values", lambda clip: _paint(clip.masks[0], 90)),
    Fault("odd_colour", "v2", "unknown_colour", lambda clip: _paint(clip.colours[0], (1, 2, 3))),
    Fault("odd_id", "v2", "unknown_colour", lambda clip: _paint(clip.masks[0], 71)),
    Fault("other_id", "v2", "labels_differ", lambda c: (_paint(c.masks[0], 5), c.colours[0])[1]),
    Fault("wav_of_44_khz", "s4", "wav_rate", _wav(5.02, 44_100)),
    Fault("wav_of_2_s", "s4", "short_wav", _wav(2.0)),
    Fault("cut_wav", "s4", "unreadable_wav", lambda clip: _cut(clip.wav, 0.5)),
    Fault("wav_of_10_s", "s4", "long_wav", _wav(10.0)),
    Fault("silence", "s4", "silent_wav", _wav(5.02, convert=lambda samples: samples * 0)),
)


def write_broken(folder: pathlib.Path, size: int = 224) -> dict[str, str]:
    """Writes a miniature S4 and AVSS with one clip, of the test split, for each fault.

    Returns:
      The path that must be named, by the fault's name, which is its clip's id too.
    """
    s4 = [(fault.name, "dog_barking") for fault in FAULTS if fault.subset == "s4"]
    v2 = tuple(
        mini.Row(f"{fault.name}_0_10000", "dog", "test", "v2")
        for fault in FAULTS
        if fault.subset == "v2"
    )
    mini.write_s4(folder / "s4", size, {"test": [*s4, ("sound", "dog_barking")]})
    mini.write_semantic(folder / "avss", (*v2, mini.Row("sound_0_10000", "dog", "test", "v2")))
    clips = {}
    for layout in layouts.find_layouts(folder).values():
        for clip in layouts.read_clips(layout)[0]:
            clips[clip.id.removesuffix("_0_10000")] = clip
    return {fault.name: fault.plant(clips[fault.name]) for fault in FAULTS}
