"""A model run over clips: frames and sound -> logits -> masks or probabilities of any size."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import devices, errors
from avs_jax.backbones import get_normalization
from avs_jax.layers.shared import calls_kept
from avs_jax.media.video import Clip
from avs_jax.models.avesformer import AVESFormer
from avs_jax.models.forward import make_forward
from avs_jax.types import Array, Float, UInt8
from avs_jax.weights.trained import Loaded

_ROWS = 8  # of upsampled logits at a time: those of 71 classes for a 4K frame would take 2.4 GB


def make_calibrated(loaded: Loaded) -> Callable:
    """`network(variables, batch) -> f32[b t h w k]`: `make_forward` of a model that was opened, its
    logits divided by its temperature."""
    data = loaded.config.data
    network = make_forward(
        loaded.model,
        normalization=get_normalization(loaded.config.model.backbone),
        size=data.size,
        alignment=data.alignment,
    )
    return lambda variables, batch: network(variables, batch) / loaded.temperature


def compile_forward(loaded: Loaded, matmul_precision: str | None = None) -> Callable:
    """The model as `run_clips` wants it: one compiled function per shape, calibrated logits.

    On a CPU the frames of a model that looks at each alone go through it one after the other: their
    maps stay in the cache, and five take a fifth less time than side by side.

    matmul_precision: see `jax.default_matmul_precision`; None: `choose_precision`.
    """
    precision = matmul_precision or choose_precision(loaded)
    network = make_calibrated(loaded)
    if jax.default_backend() == "cpu" and looks_at_frames_alone(loaded):
        network = _frame_by_frame(network)
    apply = jax.jit(network)
    variables = jax.device_put(loaded.variables)  # once: those of the package are the host's
    compiled = set()

    def forward(frames, waveform, frame_mask):
        batch = {"frames": frames, "waveform": waveform, "frame_mask": frame_mask}
        with jax.default_matmul_precision(precision), calls_kept(jax.devices()):
            logits = apply(variables, batch)
        if frames.shape not in compiled:
            compiled.add(frames.shape)
            devices.give_back_memory()
        return logits

    return forward


def choose_precision(loaded: Loaded) -> str | None:
    """Of products where masks are wanted and no figures: a run's own; of converted weights on a CPU
    its default (`layers.conv.convolve`), whose 1e-5 no mask shows."""
    on_cpu = jax.default_backend() == "cpu"
    return loaded.config.get("matmul_precision") if on_cpu else loaded.matmul_precision


def looks_at_frames_alone(loaded: Loaded) -> bool:
    """Whether a clip is no more to a model than its frames, each with its own second of sound.

    So it is of AVESFormer, unless its patches of sound lie end to end rather than by the second.
    """
    return isinstance(loaded.model, AVESFormer) and loaded.config.data.alignment == "second"


def _frame_by_frame(network: Callable) -> Callable:
    network = jax.jit(network)  # traced once, for its shape and for its program

    def forward(variables, batch):
        b, t = batch["frame_mask"].shape
        sounds = batch["waveform"].reshape(b * t, 1, -1)
        frames = batch["frames"].reshape(b * t, 1, 1, *batch["frames"].shape[2:])
        masks = batch["frame_mask"].reshape(b * t, 1, 1)
        singles = {"frames": frames, "waveform": sounds, "frame_mask": masks}
        shape = jax.eval_shape(network, variables, jax.tree.map(lambda x: x[0], singles))

        def mark(single):  # and spend nothing on what pads a clip
            exists = single["frame_mask"][0, 0]
            run = functools.partial(network, variables)
            return jax.lax.cond(exists, run, lambda _: jnp.zeros(shape.shape, shape.dtype), single)

        logits = jax.lax.map(mark, singles)
        return logits.reshape(b, t, *logits.shape[3:])

    return forward


class Decision:
    """How logits become masks of a size, or probabilities that a pixel sounds.

    One class: logits travel at the model's size and are enlarged by OpenCV, 30 times as fast as by
    XLA on a CPU. More: ids are found on the device, for the logits of 71 classes are large.
    """

    def __init__(
        self, height: int, width: int, *, threshold: float = 0.5, probabilities: bool = False
    ):
        self._size = (height, width)
        self._threshold = threshold
        self._probabilities = probabilities

    def begin(self, logits: Float[Array, "b t h w k"]) -> Array:
        """On the device -> what is to be fetched."""
        if logits.shape[-1] == 1:
            return logits[..., 0].astype(jnp.float32)
        if self._probabilities:
            return probabilities_from_logits(logits, *self._size)
        return masks_from_logits(logits, *self._size)

    def finish(self, fetched: np.ndarray, binary: bool) -> np.ndarray:
        """What was fetched of a clip -> u8[t height width], or f32 probabilities."""
        if not binary:
            return fetched
        height, width = self._size
        kind = np.float32 if self._probabilities else np.uint8
        decided = np.empty((len(fetched), height, width), kind)
        least = np.log(self._threshold / (1 - self._threshold))  # sigmoid(least) = threshold
        for frame, logits in zip(decided, fetched, strict=True):
            # Bilinear, as `jax.image.resize` without antialiasing.
            resized = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)
            if self._probabilities:
                frame[:] = 1 / (1 + np.exp(-resized.clip(-80, 80)))
            else:
                np.greater(resized, least, out=frame.view(bool))
        return decided


def run_clips(
    clips: Iterable[Clip], forward: Callable, decision: Decision, batch_size: int
) -> Iterator[tuple[Clip, np.ndarray, bool]]:
    """Yields (clip, masks or probabilities [t h w], binary) in the order of the clips.

    The device runs a batch while the next is read; the last batch is filled up with copies.

    Args:
      forward: `forward(frames u8[b t size size 3], waveform f32[b 16000 * t], frame_mask bool[b t])
        -> logits f32[b t size size k]`, always called with the same shapes.

    Raises:
      BadValueError: logits of a frame that exists are NaN or infinite; with the times.
    """
    for clip, decided, binary, _ in measure_clips(clips, forward, decision, batch_size, None):
        yield clip, decided, binary


def measure_clips(
    clips: Iterable[Clip],
    forward: Callable,
    decision: Decision,
    batch_size: int,
    measure: Callable | None,
) -> Iterator[tuple[Clip, np.ndarray, bool, np.ndarray | None]]:
    """As `run_clips`, and with each clip what `measure(logits) -> [b t ...]` says of its frames.

    It runs on the device, e.g. `peak_probabilities`; None: nothing is measured.
    """
    clips, running = iter(clips), None
    while True:
        batch = list(itertools.islice(clips, batch_size))
        started = None
        if batch:
            full = batch + [batch[-1]] * (batch_size - len(batch))
            logits = forward(
                np.stack([clip.frames for clip in full]),
                np.stack([clip.waveform for clip in full]),
                np.stack([clip.frame_mask for clip in full]),
            )
            logits = jnp.asarray(logits)
            finite = jnp.isfinite(logits).all((2, 3, 4))
            measured = [None] * batch_size if measure is None else measure(logits)
            binary = logits.shape[-1] == 1
            started = (batch, decision.begin(logits), finite, measured, binary)
        if running is not None:
            clips_run, begun, finite, measured, binary = running
            measured = measured if measure is None else np.asarray(measured)
            for clip, fetched, good, found in zip(
                clips_run, np.asarray(begun), np.asarray(finite), measured, strict=False
            ):
                _check_finite(clip, good)
                yield clip, decision.finish(fetched, binary), binary, found
        if started is None:
            return
        running = started


@jax.jit
def peak_probabilities(logits: Float[Array, "b t h w k"]) -> Float[Array, "b t k"]:
    """Of each frame and class, its probability where it is greatest; k = 1: of what sounds."""
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits.max((2, 3)))
    return jax.nn.softmax(logits, axis=-1).max((2, 3))


def _check_finite(clip: Clip, finite: np.ndarray) -> None:
    bad = clip.times[clip.frame_mask & ~finite]
    if len(bad):
        times = ", ".join(f"{time:.3f}" for time in bad if np.isfinite(time)) or "before it"
        raise errors.BadValueError(
            f"logits are NaN or infinite in {len(bad)} frame(s) of the clip that ends at "
            f"{np.nanmax(clip.times):.3f} s (at {times}); no mask can be made of them. Take an "
            "earlier checkpoint (--which), or compute in float32 (model.dtype)."
        )


@functools.partial(jax.jit, static_argnames=("height", "width"))
def masks_from_logits(
    logits: Float[Array, "b t h w k"], height: int, width: int
) -> UInt8[Array, "b t {height} {width}"]:
    """Logits of several classes -> the ids of the likeliest, of another size.

    It is the logits that are resized, for smooth outlines: bilinear, as `jax.image.resize` without
    antialiasing.
    """
    k = logits.shape[-1]

    def decide(row):
        # The first of the greatest, as argmax, which on a CPU takes twice as long.
        greatest = row == row.max(axis=-1, keepdims=True)
        return jnp.where(greatest, jnp.arange(k), k).min(axis=-1).astype(jnp.uint8)

    return _map_rows(decide, logits, height, width)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def probabilities_from_logits(
    logits: Float[Array, "b t h w k"], height: int, width: int
) -> Float[Array, "b t {height} {width}"]:
    """Logits of several classes -> probability of any but background, of another size."""
    return _map_rows(lambda row: 1.0 - jax.nn.softmax(row, axis=-1)[:, 0], logits, height, width)


def _map_rows(decide: Callable, logits: Array, height: int, width: int) -> Array:
    """`decide([width k] -> [width])` of every row of resized logits -> [b t height width].

    A few rows at a time, because at full size the logits of 71 classes do not fit in memory; and
    resized by indices, because `jax.image.resize` would multiply by a dense matrix.
    """
    b, t, h, w, k = logits.shape
    above, below, y = _neighbours(h, height)
    left, right, x = _neighbours(w, width)

    def decide_frame(frame):
        def decide_row(taps):
            above, below, y = taps
            row = frame[above] * (1 - y) + frame[below] * y  # w k
            return decide(row[left] * (1 - x[:, None]) + row[right] * x[:, None])

        return jax.lax.map(decide_row, (above, below, y), batch_size=_ROWS)

    decided = jax.lax.map(decide_frame, logits.astype(jnp.float32).reshape(b * t, h, w, k))
    return decided.reshape(b, t, height, width)


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel the two old ones it lies between, and the weight of the second."""
    centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    centre = centre.clip(0, size - 1)
    first = centre.astype(np.int32)
    return first, np.minimum(first + 1, size - 1), (centre - first).astype(np.float32)
