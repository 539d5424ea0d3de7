"""Looks at a film's sound track; as a program, in a process of its own, for `sound.probe_sound`.

    python avs_jax/media/sound_probe.py FILM

prints what `probe` gives as JSON. It imports PyAV and NumPy alone, so that it starts fast.
"""

import itertools
import json
import sys

import av
import numpy as np

# Tags of old films are often not UTF-8: PyAV 18 has to be told, 19 no longer takes the argument.
ANY_TAGS = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

# Formats that cannot state an order of channels for which FFmpeg has no name, and codecs that fix
# it themselves whatever the format says.
_PLAIN_FORMATS = ("asf", "avi", "flv", "matroska", "mpeg", "ogg", "wav")
_PLAIN_CODECS = ("ac3", "amrnb", "amrwb", "eac3", "mp1", "mp2", "mp3", "opus", "vorbis")
_PACKETS = 400  # that are looked at for the first of the sound track


class Mixer:
    """Mixes frames of one kind (sample format, layout and rate) down to one or two channels."""

    def __init__(self, frame: av.AudioFrame):
        layout = frame.layout
        self.level = 0.0  # of all channels of the last frame, root mean square
        # PyAV looks for planes beyond the last one where there are more than 8.
        self._is_readable = layout.nb_channels <= 8 or not frame.format.is_planar
        self._resampler = None
        self._is_ambisonic = layout.name.startswith("ambisonic")
        if self._is_ambisonic:
            self._resampler = av.AudioResampler("flt", layout, frame.sample_rate)
        elif layout.nb_channels > 2:
            self._resampler = av.AudioResampler("s16p", "stereo", frame.sample_rate)

    def mix(self, frame: av.AudioFrame) -> np.ndarray | None:
        """f32[c s] in [-1, 1], c = 1 or 2; None where FFmpeg cannot mix them."""
        samples = to_float(frame) if self._is_readable else None
        self.level = 1.0 if samples is None else level(samples)
        if self._resampler is None:
            return samples
        try:
            parts = self._resampler.resample(frame)
        except (av.FFmpegError, ValueError):
            return None
        samples = [to_float(part) for part in parts]
        if not samples:
            return np.zeros((1 if self._is_ambisonic else 2, 0), np.float32)
        samples = np.concatenate(samples, axis=1)
        return samples[:1] if self._is_ambisonic else samples


def to_float(frame: av.AudioFrame) -> np.ndarray:
    """The samples of a frame as f32[c s] in [-1, 1]."""
    samples = frame.to_ndarray()  # [c s], or interleaved [1 s*c]
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:  # the one unsigned format
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)


def level(samples: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0


def has_known_order(container, stream) -> bool:
    """Whether a track's channels are surely in an order that FFmpeg has a name for.

    PyAV must not be asked for the layout to find out: that is what ends the process.
    """
    codec = stream.codec_context.name
    if codec == "aac":
        return _has_plain_aac(container, stream)
    plain_format = any(name in container.format.name for name in _PLAIN_FORMATS)
    return codec in _PLAIN_CODECS or (plain_format and codec not in ("aac_latm", "als"))


def _has_plain_aac(container, stream) -> bool:
    """Whether an AAC track's channels are one of the standard's sets, rather than listed."""
    config = stream.codec_context.extradata or b""
    # AudioSpecificConfig (ISO 14496-3): 5 bits of object type, 4 of the rate, 4 of the channels;
    # 0: they are listed. Longer forms of the first two are rare.
    if len(config) >= 2:
        return config[0] >> 3 != 31 and _rate_index(config) != 15 and 1 <= config[1] >> 3 & 15 <= 7
    try:
        for packet in itertools.islice(container.demux(), _PACKETS):
            if packet.stream.index == stream.index and packet.size > 7:
                return is_plain_adts(bytes(packet))
    except (av.FFmpegError, IndexError):
        pass
    return False


def is_plain_adts(packet: bytes) -> bool:
    """Whether a packet of AAC says itself, as in MPEG-TS, that its channels are a standard set."""
    head = packet[:4]  # ADTS: 12 bits of ones, ..., 3 bits of the channels
    channels = (head[2] & 1) << 2 | head[3] >> 6
    return head[0] == 0xFF and head[1] >> 4 == 0xF and channels > 0


def _rate_index(config: bytes) -> int:
    return (config[0] & 7) << 1 | config[1] >> 7


def probe(path: str) -> dict:
    """What the first sound of a film is: samples, rate, channels, layout, and if it `mixes`."""
    with av.open(f"file:{path}", **ANY_TAGS) as container:
        packets = container.demux(container.streams.best("audio"))
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet is not None else []
            except av.FFmpegError:
                continue  # a demuxer that raised has ended: then comes None
            except IndexError:  # PyAV's demuxer, at the end of a file that grew a stream
                packet = None
            if packet is None:
                return {"samples": 0}
            for frame in frames:
                if frame.samples:
                    return {
                        "samples": frame.samples,
                        "rate": frame.sample_rate,
                        "channels": frame.layout.nb_channels,
                        "layout": frame.layout.name,
                        "mixes": Mixer(frame).mix(frame) is not None,
                    }


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
