"""Sound: any waveform -> 16 kHz mono on the host; waveform -> VGGish log-mel patches on the device.

The front end is VGGish's (Hershey et al., ICASSP 2017; `mel_features.py` and `vggish_input.py` of
tensorflow/models), in jax.numpy: 25 ms Hann windows every 10 ms, magnitude spectrum, 64 mel bands,
log(mel + 0.01), cut into patches of 96 windows. It is a pure function of static shapes, so that it
runs inside the same jit as the model and a batch travels as waveforms.
"""

import jax.numpy as jnp
import numpy as np

from avs_jax import errors
from avs_jax.types import Array, Float

SAMPLE_RATE = 16_000  # Hz, VGGish
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FFT_SIZE = 512  # the next power of two above the window
NUM_BANDS = 64
BAND_LIMITS = (125.0, 7500.0)  # Hz
LOG_OFFSET = 0.01
PATCH_FRAMES = 96  # 0.96 s
SECOND_FRAMES = SAMPLE_RATE // HOP  # 100

_PATCH_HOP = {"paper": PATCH_FRAMES, "second": SECOND_FRAMES}
_ROWS_PER_WINDOW = -(-WINDOW // HOP)  # a window reaches into 3 hops
# Grids of the coarse parts in `_magnitude`: the Hann windows add up to 100 over the even (or odd)
# samples, so a sum reaches 2 * 100 * 2^16 < 2^24 for |sample| <= 2: float32 holds it exactly.
_SIGNAL_GRID, _TABLE_GRID = 2.0**9, 2.0**7


def mel_matrix() -> Float[np.ndarray, "257 64"]:
    """Weights of the 64 triangular bands over the 257 bins of the spectrum, float64.

    The triangles are linear on the HTK mel scale, 1127 ln(1 + f / 700); the DC bin weighs nothing.
    """

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1))[:, None]
    edges = np.linspace(mel(BAND_LIMITS[0]), mel(BAND_LIMITS[1]), NUM_BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return weights


def _fold(centred: Array, sign: int) -> Array:
    """x[-199 .. 199] around its centre -> x[n] + sign * x[-n] for n = 0 .. 199."""
    left = jnp.flip(centred[..., : WINDOW // 2 - 1], axis=-1)  # n = 1 .. 199
    left = jnp.pad(left, [(0, 0)] * (left.ndim - 1) + [(1, 0)])
    return centred[..., WINDOW // 2 - 1 :] + sign * left


def _half_transform(high: Array, low: Array, wave: np.ufunc) -> Array:
    """sum over n of (high + low)[n] wave(2 pi n k / 512) for k = 0 .. 256; wave is cos or sin.

    wave(2 pi n (256 - k) / 512) is plus or minus wave(2 pi n k / 512), by whether n is even, so the
    bins above 128 come from the sums for those below. The table is split like the signal.
    """
    sums = []
    for parity in (0, 1):
        n = np.arange(parity, WINDOW // 2, 2)
        table = wave(2 * np.pi / FFT_SIZE * np.outer(n, np.arange(FFT_SIZE // 4 + 1)))
        table_high = np.round(table * _TABLE_GRID) / _TABLE_GRID
        table_low = np.concatenate([table - table_high, table])
        a, b = high[..., parity::2], low[..., parity::2]
        # HIGHEST: the default on TPU would round the sound to bfloat16.
        exact = jnp.matmul(a, table_high.astype(np.float32), precision="highest")
        rest = jnp.concatenate([a, b], axis=-1)
        rest = jnp.matmul(rest, table_low.astype(np.float32), precision="highest")
        sums.append((exact, rest))
    (even, even_rest), (odd, odd_rest) = sums
    lower = (even + odd) + (even_rest + odd_rest)
    upper = (even - odd) + (even_rest - odd_rest)  # for sin: of opposite sign
    return jnp.concatenate([lower, jnp.flip(upper[..., :-1], axis=-1)], axis=-1)


def _magnitude(windows: Float[Array, "*b 400"]) -> Float[Array, "*b 257"]:
    """Magnitude of the Hann-windowed spectrum, 512 points, accurate in bins far below the loudest.

    VGGish computes in float64. The rounding of a float32 FFT, some 1e-7 of the whole signal in each
    bin, would show in the logarithm of near-silent bands beside a loud tone (6e-4). Here signal and
    table are split into a coarse part on a fixed grid, whose products add up without rounding, and
    a small rest: errors stay below 6e-5. Matrix products run well and shard freely everywhere.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic; hann[0] = 0
    windowed = (windows * hann.astype(np.float32))[
        ..., 1:
    ]  # odd length: symmetric about its centre
    high = jnp.round(windowed * _SIGNAL_GRID) / _SIGNAL_GRID
    low = windowed - high
    # Moving the origin to the window's centre turns phases only, and makes cos and sin parts of the
    # even and the odd half of the window.
    real = _half_transform(_fold(high, 1), _fold(low, 1), np.cos)
    imaginary = _half_transform(_fold(high, -1), _fold(low, -1), np.sin)
    return jnp.sqrt(real**2 + imaginary**2)


def _log_mel_frames(waveform: Array, num_frames: int) -> Array:
    """f32[*b s] -> f32[*b num_frames 64], windows that start at 0, 160, 320, ... samples."""
    # Rows of one hop, side by side, make the overlapping windows without a gather.
    rows = num_frames + _ROWS_PER_WINDOW - 1
    missing = max(0, rows * HOP - waveform.shape[-1])
    waveform = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, missing)])
    hops = waveform[..., : rows * HOP].reshape(*waveform.shape[:-1], rows, HOP)
    windows = jnp.concatenate(
        [hops[..., i : i + num_frames, :] for i in range(_ROWS_PER_WINDOW)], axis=-1
    )[..., :WINDOW]
    mel = jnp.matmul(_magnitude(windows), mel_matrix().astype(np.float32), precision="highest")
    return jnp.log(mel + LOG_OFFSET)


def log_mel(
    waveform: Float[Array, "*b s"],
    num_patches: int | None = None,
    alignment: str = "paper",
) -> Float[Array, "*b t 96 64"]:
    """Log-mel patches of a 16 kHz mono waveform in [-1, 1], as VGGish takes them.

    Args:
      waveform: int16 samples divided by 32768, or floats of that range.
      num_patches: t, one patch per second of video; None means `max(1, round(s / 16000))`.
        Where the sound is too short the last whole patch is repeated (as AVSBench does for S4 and
        MS3), where it has none at all they are zeros, and patches beyond t are cut.
      alignment: "paper" takes patches end to end, every 0.96 s, as VGGish and all three papers do;
        "second" starts one at every full second of the video.

    Returns:
      f32, natural logarithm of the mel magnitudes + 0.01: -4.6 for silence, up to about 4.

    Raises:
      UnknownNameError: for another alignment.
    """
    if alignment not in _PATCH_HOP:
        raise errors.unknown_name("alignment", alignment, _PATCH_HOP)
    samples = waveform.shape[-1]
    if num_patches is None:
        num_patches = max(1, round(samples / SAMPLE_RATE))
    hop = _PATCH_HOP[alignment]
    frames = 1 + (samples - WINDOW) // HOP if samples >= WINDOW else 0
    whole = 1 + (frames - PATCH_FRAMES) // hop if frames >= PATCH_FRAMES else 0
    whole = min(whole, num_patches)
    lead = waveform.shape[:-1]
    if whole == 0:
        return jnp.zeros((*lead, num_patches, PATCH_FRAMES, NUM_BANDS), jnp.float32)
    # A second has four frames more than a patch; only the last one may be missing them.
    frames = (whole - 1) * hop + PATCH_FRAMES
    spectrogram = _log_mel_frames(waveform.astype(jnp.float32), frames)  # [*b frames 64]
    spectrogram = jnp.pad(spectrogram, [(0, 0)] * len(lead) + [(0, whole * hop - frames), (0, 0)])
    patches = spectrogram.reshape(*lead, whole, hop, NUM_BANDS)[..., :PATCH_FRAMES, :]
    if whole < num_patches:
        last = jnp.repeat(patches[..., -1:, :, :], num_patches - whole, axis=-3)
        patches = jnp.concatenate([patches, last], axis=-3)
    return patches


def resample(
    waveform: Float[np.ndarray, "s"] | Float[np.ndarray, "s c"], rate: int | float
) -> Float[np.ndarray, "s2"]:
    """Host side: any rate and any number of channels -> 16 kHz mono float32, mean of the channels.

    Args:
      waveform: samples in [-1, 1].
      rate: its sample rate in Hz.

    Raises:
      BadValueError: for a rate that is not positive.
    """
    import soxr  # here: models need this file, and not soxr

    if not rate > 0:
        raise errors.BadValueError(f"sample rate {rate} Hz is not positive; give the file's rate.")
    mono = waveform.astype(np.float32)
    if mono.ndim == 2:
        mono = mono.mean(axis=1)
    if rate == SAMPLE_RATE or mono.size == 0:
        return mono
    # The papers resample with resampy, which is unmaintained. Its filter falls off at nine tenths
    # of the lower of the two rates' half: for 44.1 and 48 kHz from 7.2 kHz on, where log-mel of
    # white noise differs by 0.5 in the topmost band, 0.06 in the one below, and less than 1e-3 in
    # all others (tests/media/test_audio.py). For 8 kHz it is what lies near 4 kHz that differs:
    # bands 45 to 49, by 0.25 to 1.9.
    return np.asarray(soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ"), np.float32)
