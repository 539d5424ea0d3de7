"""Films made on the spot, for the tests of video.py, video_writer.py and predict.py."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

GREY_STEP = 5


def grey(index: int, size: tuple[int, int]) -> np.ndarray:
    """A flat picture [h w 3]; its brightness tells `grey_index` which one it was (of 45)."""
    return np.full((size[1], size[0], 3), 24 + GREY_STEP * (index % 45), np.uint8)


def grey_index(rgb: np.ndarray) -> int:
    return round((float(rgb.mean()) - 24) / GREY_STEP)


def quadrants(_index: int, size: tuple[int, int]) -> np.ndarray:
    """Red, green, blue, black: top left, top right, bottom left, bottom right."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    half = (size[1] // 2, size[0] // 2)
    picture[: half[0], : half[1]] = (255, 0, 0)
    picture[: half[0], half[1] :] = (0, 255, 0)
    picture[half[0] :, : half[1]] = (0, 0, 255)
    return picture


def tone(times: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * times)


def write_film(
    path,
    *,
    seconds: float = 2,
    fps: Fraction | int = 5,
    size: tuple[int, int] = (48, 32),
    picture: Callable | None = grey,
    stamps: Sequence[float] | None = None,
    codec: str = "libx264",
    all_key: bool = False,
    turn: int = 0,
    mirror: bool = False,
    colorspace: int | None = None,
    sound: Callable | None = tone,
    sound_seconds: float | None = None,
    sound_start: float = 0,
    sound_codec: str = "aac",
    rate: int = 44_100,
    layout: str = "stereo",
    title: str = "",
) -> str:
    """Writes a film and returns its path.

    `picture(index, (w, h))` draws a frame, None leaves the pictures out; `stamps` gives their times
    (else index / fps) in multiples of 1/1000 s. `sound(times)` gives samples [s], or [c s], None
    leaves the sound out; `sound_seconds` = 0 makes an empty track. `all_key`: every picture stands
    alone.
    """
    path = str(path)
    with av.open(path, "w") as output:
        video = audio = None
        if picture is not None:
            video = output.add_stream(codec, rate=Fraction(fps))
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000) if stamps else 1 / Fraction(fps)
            if codec == "libx264":
                video.options = {"preset": "ultrafast", "crf": "4"}
            if all_key:
                video.codec_context.gop_size = 1
            if size[0] % 2 or size[1] % 2:
                video.pix_fmt = "yuv444p"
            if turn or mirror:
                video.set_display_rotation(turn, hflip=mirror)
            if colorspace:
                video.codec_context.colorspace = colorspace
        if sound is not None:
            audio = output.add_stream(sound_codec, rate=rate)
            audio.codec_context.layout = layout
        if title:
            for tagged in (output, *output.streams):
                tagged.metadata["title"] = title
        output.start_encoding()
        packets = []
        if video:
            count = len(stamps) if stamps else round(seconds * float(fps))
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
                frame = frame.reformat(format=video.pix_fmt, dst_colorspace=colorspace or 5)
                frame.time_base = video.codec_context.time_base
                frame.pts = round(stamps[index] * 1000) if stamps else index
                packets += video.encode(frame)
            packets += video.encode(None)
        if audio:
            length = seconds if sound_seconds is None else sound_seconds
            packets += encode_sound(audio, sound, round(length * rate), round(sound_start * rate))
        packets.sort(key=lambda packet: packet.dts * packet.time_base)  # as recorders interleave
        output.mux(packets)
    return path


def encode_sound(stream, sound, count: int, begin: int) -> list:
    context = stream.codec_context
    rate, channels = context.sample_rate, context.layout.nb_channels
    samples = sound((begin + np.arange(count)) / rate).astype(np.float32)
    samples = np.broadcast_to(samples, (channels, count))
    resampler = av.AudioResampler(context.format.name, context.layout.name, rate)
    packets = []
    for at in range(0, count, 1024):
        block = np.ascontiguousarray(samples[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=context.layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = begin + at
        for part in resampler.resample(frame):
            packets += stream.encode(part)
    return packets + (stream.encode(None) if count else [])
