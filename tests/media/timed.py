"""Films that carry their own time, in picture and sound, and what reads it back with PyAV alone.

Picture n of a film shows n as 12 black or white blocks; the pitch of its sound rises by 200 Hz a
second. So what is heard and seen at any time of a film, however it was cut and joined, tells when
it was recorded. Also here: how to cut and join films without touching the codecs.
"""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

from tests.media import film

FPS = 10
_PITCH, _RISE = 300.0, 200.0  # Hz at time 0, and how it rises in a second
_WINDOW = 0.08  # seconds of sound that are looked at at once


def numbered(index: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(12):
        row, column = divmod(bit, 4)
        rows = slice(row * height // 3, (row + 1) * height // 3)
        columns = slice(column * width // 4, (column + 1) * width // 4)
        picture[rows, columns] = 230 if index >> bit & 1 else 25
    return picture


def number(rgb: np.ndarray) -> int:
    return int(((_blocks(rgb) > 128) << np.arange(12)).sum())


def is_legible(rgb: np.ndarray) -> bool:
    blocks = _blocks(rgb)
    return bool((np.minimum(np.abs(blocks - 25), np.abs(blocks - 230)) < 40).all())


def _blocks(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    rows, columns = (np.arange(3) * 2 + 1) * height // 6, (np.arange(4) * 2 + 1) * width // 8
    return rgb[np.ix_(rows, columns)].mean(-1).ravel()


def sweep(times: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * (_PITCH * times + _RISE / 2 * times**2))


def write(path, seconds: float, begin: float = 0, **options) -> str:
    """A film of what was recorded from `begin` on; its own clock starts at 0."""
    first = round(begin * FPS)
    defaults = {
        "fps": FPS,
        "size": (96, 64),
        "picture": lambda index, size: numbered(first + index, size),
        "sound": lambda times: sweep(times + begin),
        "rate": 48_000,
    }
    return film.write_film(path, seconds=seconds, **(defaults | options))


def heard(samples: np.ndarray, rate: int) -> float | None:
    """When a piece of sound was recorded; None if it is no piece of the sweep."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8192)) ** 2
    top = int(spectrum.argmax())
    near = spectrum[max(0, top - 150 * 8192 // rate) : top + 150 * 8192 // rate].sum()
    if np.abs(samples).max() < 0.05 or near < 0.8 * spectrum.sum() or not 0 < top < 4096:
        return None
    below, at, above = np.log(spectrum[top - 1 : top + 2] + 1e-12)
    peak = top + 0.5 * (below - above) / (below - 2 * at + above)
    return (peak * rate / 8192 - _PITCH) / _RISE


def read_back(path) -> tuple[np.ndarray, np.ndarray]:
    """[(time, when recorded)] of the pictures and of the sound, as any player would see them."""
    pictures = []
    with av.open(f"file:{path}") as container:
        for frame in _decode(container, container.streams.video[0]):
            rgb = frame.to_ndarray(format="rgb24")
            if is_legible(rgb):
                pictures.append((frame.time, number(rgb) / FPS))
    with av.open(f"file:{path}") as container:
        frames = list(_decode(container, container.streams.audio[0]))
    rate = frames[0].sample_rate
    blocks, end = [], 0.0
    for frame in frames:
        # A packet that grew by damage holds several blocks: only its first one has a stamp.
        begin = end if frame.time is None else frame.time
        end = begin + frame.samples / rate
        blocks.append((begin, _mean(frame)))
    end = max(time + len(block) / rate for time, block in blocks)
    samples = np.zeros(round(end * rate) + rate, np.float32)
    at = 0
    for time, block in blocks:
        if abs(time * rate - at) > 0.005 * rate:  # some stamps are rounded to 1 ms
            at = max(0, round(time * rate))
        samples[at : at + len(block)] = block
        at += len(block)
    return np.array(pictures), listen(samples, rate)


def listen(samples: np.ndarray, rate: int) -> np.ndarray:
    """[(time, when recorded)] of sound that begins at time 0, where it is the sweep's."""
    length = round(_WINDOW * rate)
    sound = [
        ((begin + length / 2) / rate, heard(samples[begin : begin + length], rate))
        for begin in range(0, len(samples) - length, length // 2)
    ]
    return np.array([pair for pair in sound if pair[1] is not None])


def _decode(container, stream):
    """All that can be decoded: a copied packet may be damaged."""
    for packet in container.demux(stream):
        with contextlib.suppress(av.FFmpegError):
            yield from packet.decode()


def _mean(frame: av.AudioFrame) -> np.ndarray:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    scale = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    return samples.mean(0) / scale


def differences(pictures: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """By how many seconds the sound is ahead of the picture, over a film (see `read_back`)."""
    found = []
    for time, recorded in sound:
        shown = np.searchsorted(pictures[:, 0], time + 1e-6, "right") - 1
        inside = 0 < shown < len(pictures) - 1
        if inside and pictures[shown + 1, 0] - pictures[shown, 0] < 1.5 / FPS:  # not held
            seen = pictures[shown, 1] + time - pictures[shown, 0]
            found.append(recorded - seen)
    return np.array(found)


def worst(pictures: np.ndarray, sound: np.ndarray, windows: int = 5) -> float:
    """The difference of picture and sound that lasts for half of 0.04 s * windows, at its worst."""
    values = differences(pictures, sound)
    begins = range(max(1, len(values) - windows + 1))
    smooth = [np.median(values[begin : begin + windows]) for begin in begins]
    return float(max(smooth, key=abs))


# --- cutting and joining ----------------------------------------------------------------------


def join(path, parts: Sequence) -> str:
    """Joins MPEG-TS files as they are; of FLV files the headers but the first are left out."""
    head = 13 if str(path).endswith(".flv") else 0
    data = [pathlib.Path(part).read_bytes() for part in parts]
    with open(path, "wb") as file:
        file.write(data[0] + b"".join(part[head:] for part in data[1:]))
    return str(path)


def remux(source, path, keep: Callable[[av.Packet], bool]) -> str:
    """Copies a film without some of its packets."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        copies = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.size and keep(packet):
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    return str(path)


def lose_sound(source, path, begin: float, end: float) -> str:
    """Copies a film without the packets of sound of some seconds."""

    def keep(packet):
        is_lost = packet.stream.type == "audio" and begin <= packet.pts * packet.time_base < end
        return not is_lost

    return remux(source, path, keep)


def shift_flv(data: bytes, change: Callable[[int, int, int], int | None]) -> bytes:
    """Changes the stamps of an FLV file's tags: change(tag number, type, ms) -> ms; None: drop."""
    parts, at, count = [data[:13]], 13, 0
    while at + 11 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        tag = bytearray(data[at : at + 15 + size])
        stamp = int.from_bytes(tag[4:7], "big") | tag[7] << 24
        new = change(count, tag[0], stamp)
        if new is not None:
            tag[4:7], tag[7] = (new & 0xFFFFFF).to_bytes(3, "big"), new >> 24 & 0xFF
            parts.append(bytes(tag))
        at, count = at + 15 + size, count + 1
    return b"".join(parts)


def shift_ts(data: bytes, change: Callable[[int, int, int], int | None]) -> bytes:
    """Changes an MPEG-TS file's stamps: change(packet, stream id, ticks) -> ticks.

    Stamps have 33 bits. None takes a PES packet's stamps away. PCRs stay, as FFmpeg hardly looks at
    them.
    """
    data = bytearray(data)
    for number_, at in enumerate(range(0, len(data) - 187, 188)):
        if not data[at + 1] & 0x40:  # no PES packet begins here
            continue
        head = at + 4
        if data[at + 3] & 0x20:
            head += 1 + data[head]
        if data[head : head + 3] != b"\0\0\1" or data[head + 3] & 0xC0 != 0xC0:
            continue
        flags = data[head + 7] >> 6
        for place in [head + 9, head + 14][: {2: 1, 3: 2}.get(flags, 0)]:
            p = data[place : place + 5]
            ticks = (p[0] >> 1 & 7) << 30 | p[1] << 22 | p[2] >> 1 << 15 | p[3] << 7 | p[4] >> 1
            new = change(number_, data[head + 3], ticks)
            if new is None:
                data[head + 7] &= 0x3F
                data[head + 9 : head + 9 + data[head + 8]] = b"\xff" * data[head + 8]
                break
            new %= 2**33
            data[place] = p[0] & 0xF1 | (new >> 30 & 7) << 1
            data[place + 1], data[place + 2] = new >> 22 & 0xFF, (new >> 15 & 0x7F) << 1 | 1
            data[place + 3], data[place + 4] = new >> 7 & 0xFF, (new & 0x7F) << 1 | 1
    return bytes(data)


def seconds(ticks: int) -> Fraction:
    return Fraction(ticks, 90_000)
