"""Reads the files of one AVSBench clip, and says everything that is wrong with them.

The builder and the checker both read clips here, so that what the checker passes is what the
builder can use. A clip becomes an example of the data set:

    frames        5 or 10 encoded pictures, RGB: the release's own bytes where they are RGB already
    label         encoded PNGs of mode L, one class id a pixel (0/1 in the binary sets)
    waveform      int16, 16 kHz mono, as long as the wav is
    num_frames, num_labelled, id, subset, category

Sound comes from the wav alone. A pickle is never opened: loading one can run anything.
"""

import io
import os
import struct
import typing
import warnings

import cv2
import numpy as np
import PIL.Image
import scipy.io.wavfile
import tensorflow_datasets as tfds

from avs_jax.data.avsbench import classes
from avs_jax.data.avsbench.faults import Finding
from avs_jax.data.avsbench.layouts import SUBSETS, Clip
from avs_jax.media import audio
from avs_jax.types import Int

_WAV_RATES = {"v2": (48_000, 16_000)}  # Hz, as released; all others have 16 kHz
_PATCH = 15_360  # samples, VGGish: one patch of 0.96 s for each frame ...
_REACH = 240  # ... and by how much its last window reaches beyond it
_UNCOMPRESSED = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 0),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
_OBJECT_SIZE = (224, 224)  # of the object layout's frames and masks, as released
# Of any wav that was recorded: a header that says 1 Hz makes hours of a few bytes.
_RATES = (1000, 768_000)  # Hz
_SILENCE = 1e-4  # of full scale: three steps of int16


class _Reader:
    """Collects what is found while one clip is read."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.findings: list[Finding] = []

    def report(self, kind: str, path: str, detail: str = "") -> None:
        self.findings.append(Finding(kind, self.clip.id, path, detail))

    def read(self, path: str, what: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            self.report(f"missing_{what}", path)
        except OSError as error:
            self.report(f"unreadable_{what}", path, error.strerror or str(error))
        return None

    def read_picture(self, path: str, what: str) -> tuple[bytes, PIL.Image.Image] | None:
        data = self.read(path, what)
        if data is None:
            return None
        try:
            # Pillow decodes a PNG without a look at its checksums: a bit that flipped on the way
            # is another label then. `verify` looks at all of them, and spoils the picture.
            PIL.Image.open(io.BytesIO(data)).verify()
            picture = PIL.Image.open(io.BytesIO(data))
            # A truncated JPEG opens well, and OpenCV would fill it up with grey: decode all of it.
            picture.load()
        except Exception as error:  # Pillow raises a dozen kinds of errors for broken files
            self.report(f"unreadable_{what}", path, _reason(data, error))
            return None
        return data, picture


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, PIL.UnidentifiedImageError):
        return f"not a picture: begins with {data[:8]!r}"
    return str(error)


def read_clip(
    clip: Clip, repack: bool = False
) -> tuple[dict[str, typing.Any] | None, list[Finding]]:
    """Reads and decodes every file of a clip.

    Args:
      clip: see `layouts.read_clips`.
      repack: store the pixels of PNG frames in uncompressed PNGs, which are decoded eight times as
        fast; ArrayRecord compresses the record as a whole, faster and almost as well.

    Returns:
      The example, ready for `features()`, or None where a finding is fatal; and all findings.
    """
    reader = _Reader(clip)
    if not any(map(os.path.exists, (*clip.frames, *clip.masks, *clip.colours, clip.wav))):
        folder = os.path.dirname(clip.frames[0])
        reader.report("missing_clip", folder, f"{clip.subset} {clip.split}")
        return None, reader.findings
    frames, sizes = _read_frames(reader, repack)
    label = _read_labels(reader, sizes)
    waveform = _read_sound(reader)
    if any(finding.fatal for finding in reader.findings):
        return None, reader.findings
    return {
        "frames": frames,
        "label": label,
        "waveform": waveform,
        "num_frames": len(frames),
        "num_labelled": len(label),
        "id": clip.id,
        "subset": clip.subset,
        "category": clip.category,
    }, reader.findings


def features() -> tfds.features.FeaturesDict:
    """The features of an example, those of `sounding_shapes` and `subset` and `category`.

    Pictures have no fixed size: clips of the semantic layout keep their own.
    """
    image = tfds.features.Image
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(image(shape=(None, None, 3))),
            "label": tfds.features.Sequence(image(shape=(None, None, 1), encoding_format="png")),
            "waveform": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "num_frames": np.int32,
            "num_labelled": np.int32,
            "id": tfds.features.Text(),
            "subset": tfds.features.Text(),
            "category": tfds.features.Text(),
        }
    )


def _read_frames(reader: _Reader, repack: bool) -> tuple[list[bytes], list[tuple[int, int] | None]]:
    """The encoded frames and each one's (width, height), None where it cannot be read."""
    frames, sizes = [], []
    for path in reader.clip.frames:
        read = reader.read_picture(path, "frame")
        if read is None:
            sizes.append(None)
            continue
        data, picture = read
        sizes.append(picture.size)
        if picture.format not in ("JPEG", "PNG") or picture.mode != "RGB" or not _plain(*read):
            reader.report("frame_mode", path, _describe(*read))
            data = _encode_png(np.asarray(picture.convert("RGB"))[..., ::-1])
        elif repack and picture.format == "PNG":
            data = _encode_png(np.asarray(picture)[..., ::-1], _UNCOMPRESSED)
        frames.append(data)
        first = next(size for size in sizes if size)
        if picture.size != first:
            reader.report("frame_size", path, f"{_spell(picture.size)}, not {_spell(first)}")
    first = next((size for size in sizes if size), _OBJECT_SIZE)
    if reader.clip.subset not in SUBSETS and first != _OBJECT_SIZE:
        reader.report("not_224", reader.clip.frames[0], _spell(first))
    return frames, sizes


def _spell(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _plain(data: bytes, picture: PIL.Image.Image) -> bool:
    """Whether every decoder sees what Pillow sees: OpenCV keeps 16 bits and adds transparency."""
    return _bit_depth(data, picture) == 8 and "transparency" not in picture.info


def _bit_depth(data: bytes, picture: PIL.Image.Image) -> int:
    # PNG: 8 bytes of signature, the header's length and name, width, height, then the bit depth.
    return data[24] if picture.format == "PNG" else 8


def _describe(data: bytes, picture: PIL.Image.Image) -> str:
    depth = _bit_depth(data, picture)
    bits = "" if depth == 8 else f", {depth} bits"
    clear = ", transparency" if "transparency" in picture.info else ""
    return f"{picture.format}, mode {picture.mode}{bits}{clear}"


def _encode_png(pixels: np.ndarray, flags: tuple[int, ...] = ()) -> bytes:
    return cv2.imencode(".png", pixels, flags)[1].tobytes()


def _read_labels(reader: _Reader, sizes: list[tuple[int, int] | None]) -> list[bytes]:
    clip = reader.clip
    labels = []
    for index, size in zip(range(len(clip.masks)), sizes, strict=False):
        if clip.subset in SUBSETS:
            read = _read_class_ids(reader, clip.masks[index], clip.colours[index])
        else:
            read = _read_binary_mask(reader, clip.masks[index])
        if read is None:
            continue
        path, ids, data = read
        if size and ids.shape != size[::-1]:
            detail = f"{_spell(ids.shape[::-1])}, its frame {_spell(size)}"
            reader.report("mask_size", path, detail)
        if clip.binary and clip.subset in SUBSETS:
            ids, data = (ids > 0).astype(np.uint8), None
        labels.append(data or _encode_png(ids))
    return labels


def _read_binary_mask(reader: _Reader, path: str) -> tuple[str, np.ndarray, None] | None:
    """S4's and MS3's masks, 0 and 255 of mode L, as u8[h w] of 0 and 1."""
    read = reader.read_picture(path, "mask")
    if read is None:
        return None
    picture = read[1]
    if picture.mode != "L":
        reader.report("mask_mode", path, _describe(*read))
    if picture.mode in ("L", "1", "I;16", "I"):
        pixels = np.asarray(picture).astype(np.int32)
        if set(np.unique(pixels)) <= {0, 1}:
            return path, pixels.astype(np.uint8), None
        if picture.mode == "L" and not ((pixels == 0) | (pixels == 255)).all():
            grey = int(((pixels > 0) & (pixels < 255)).sum())
            reader.report("mask_values", path, f"{grey} pixels between 0 and 255")
        top = 255 if picture.mode == "L" else int(pixels.max())
        return path, (2 * pixels > top).astype(np.uint8), None
    coloured = np.asarray(picture.convert("RGB")).any(axis=-1)
    return path, coloured.astype(np.uint8), None


def _read_class_ids(
    reader: _Reader, path: str, colour_path: str
) -> tuple[str, np.ndarray, bytes | None] | None:
    """Labels of the semantic layout as u8[h w], and the file's bytes where they can be kept.

    Ids where they are there, else palette colours; where both are there they are compared.
    """
    colours = None
    if os.path.exists(colour_path):
        colours = _read_colours(reader, colour_path)
        if not os.path.exists(path):
            return None if colours is None else (colour_path, colours, None)
    read = reader.read_picture(path, "mask")
    if read is None:
        return None
    data, picture = read
    if picture.mode not in ("L", "P", "1", "I;16", "I"):
        reader.report("mask_mode", path, _describe(*read))
        return path, _decode_colours(reader, path, picture), None
    values = np.asarray(picture)
    plain = picture.mode == "L" and picture.format == "PNG" and _plain(*read)
    if not plain:
        reader.report("mask_mode", path, _describe(*read))
    if (unknown := values >= classes.NUM_CLASSES).any():
        detail = f"{int(unknown.sum())} pixels, e.g. id {int(values[unknown][0])} of 0..70"
        reader.report("unknown_colour", path, detail)
    ids = np.where(unknown, 0, values).astype(np.uint8)
    if colours is not None and colours.shape != ids.shape:
        detail = f"{_spell(colours.shape[::-1])} and {_spell(ids.shape[::-1])}"
        reader.report("labels_differ", colour_path, detail)
    elif colours is not None and (colours != ids).any():
        detail = f"{int((colours != ids).sum())} of {ids.size} pixels"
        reader.report("labels_differ", colour_path, detail)
    return path, ids, data if plain and not unknown.any() else None


def _read_colours(reader: _Reader, path: str) -> np.ndarray | None:
    read = reader.read_picture(path, "mask")
    return None if read is None else _decode_colours(reader, path, read[1])


def _decode_colours(reader: _Reader, path: str, picture: PIL.Image.Image) -> np.ndarray:
    ids, unknown = classes.decode_palette(np.asarray(picture.convert("RGB")))
    if len(unknown):
        colour = tuple(unknown[0].tolist())
        reader.report("unknown_colour", path, f"{len(unknown)} pixels, e.g. RGB {colour}")
    return ids


def _read_sound(reader: _Reader) -> np.ndarray | None:
    """The wav as int16, 16 kHz mono; None where there is none that could be used."""
    clip = reader.clip
    data = reader.read(clip.wav, "wav")
    if data is None:
        return None
    if data[:1] == b"\x80" or data[:2] == b"PK":  # pickle; zip, in which torch keeps its pickles
        reader.report("pickled_wav", clip.wav)
        return None
    try:
        rate, samples = decode_wav(data)
    except Exception as error:  # scipy raises a dozen kinds of errors for broken files
        reason = "the file is empty" if not data else str(error)
        reader.report("unreadable_wav", clip.wav, reason)
        return None
    if samples.size == 0:
        reader.report("empty_wav", clip.wav)
        return None
    _check_sound(reader, rate, samples)
    if samples.dtype != np.int16 or samples.ndim > 1 or rate != audio.SAMPLE_RATE:
        samples = to_int16(audio.resample(scale_samples(samples), float(rate)))
    return repeat_end(samples, len(clip.frames)) if clip.binary else samples


def _check_sound(reader: _Reader, rate: int, samples: np.ndarray) -> None:
    clip = reader.clip
    seconds = len(samples) / rate
    count = len(clip.frames)
    if rate not in _WAV_RATES.get(clip.subset, (audio.SAMPLE_RATE,)):
        reader.report("wav_rate", clip.wav, f"{rate} Hz")
    if seconds * audio.SAMPLE_RATE < count * _PATCH + _REACH:
        reader.report("short_wav", clip.wav, f"{seconds:.2f} s for {count} frames")
    if seconds >= count + 1:
        reader.report("long_wav", clip.wav, f"{seconds:.2f} s for {count} frames")
    if np.abs(scale_samples(samples)).max() < _SILENCE:
        reader.report("silent_wav", clip.wav)


def decode_wav(data: bytes) -> tuple[int, np.ndarray]:
    """Decodes a wav file's bytes.

    Returns:
      The rate in Hz; the samples [s] or [s c], of the file's own dtype.

    Raises:
      ValueError: not a wav, one that is cut off, or one with numbers that are not finite; whatever
        scipy raises for codings it does not know.
    """
    if data[:4] not in (b"RIFF", b"RIFX", b"RF64"):
        raise ValueError(f"not a wav: begins with {data[:8]!r}")
    # What was written to a pipe does not know its length, and says the largest there is.
    length = 8 + int.from_bytes(data[4:8], "big" if data[:4] == b"RIFX" else "little")
    is_cut = len(data) < length < 2**32
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rate, samples = scipy.io.wavfile.read(io.BytesIO(data))
        except (ValueError, struct.error) as error:
            reason = f"cut off: {len(data)} of {length} bytes" if is_cut else str(error)
            raise ValueError(reason) from error
    if is_cut and any("EOF" in str(warning.message) for warning in caught):
        raise ValueError(f"cut off: {len(data)} of {length} bytes")
    if not np.isfinite(samples).all():
        raise ValueError("samples that are not finite")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"a rate of {rate} Hz in its header")
    return rate, samples


def scale_samples(samples: np.ndarray) -> np.ndarray:
    """Samples of a wav, of whatever dtype, as float32 in [-1, 1]; 8-bit wavs are unsigned."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    bits = 8 * samples.dtype.itemsize
    scaled = samples.astype(np.float32) / np.float32(2 ** (bits - 1))
    return scaled - 1 if samples.dtype.kind == "u" else scaled


def to_int16(waveform: np.ndarray) -> Int[np.ndarray, "s"]:
    """Floats in [-1, 1] as int16, what is louder clipped."""
    return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)


def repeat_end(waveform: Int[np.ndarray, "s"], seconds: int) -> Int[np.ndarray, "s2"]:
    """Makes sound that is too short for its clip as long, by repeating its last whole 0.96 s.

    AVSBench repeats the last log-mel patch of a short S4 or MS3 clip; this gives the same patches
    but for the last two of their 96 windows, which reach into the repetition. Sound with a patch
    for every second, or with none, stays as it is.
    """
    whole = (len(waveform) - _REACH) // _PATCH
    if not 0 < whole < seconds:
        return waveform
    last = waveform[(whole - 1) * _PATCH : whole * _PATCH]
    parts = [waveform[: whole * _PATCH], np.tile(last, seconds - whole + 1)]
    return np.concatenate(parts)[: seconds * audio.SAMPLE_RATE]
