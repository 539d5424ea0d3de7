"""A film marked: every mask of it in the order of time, an overlay film, a folder of masks."""

import contextlib
import dataclasses
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from avs_jax import errors
from avs_jax.media import partial
from avs_jax.media.drawing import Overlay, write_png
from avs_jax.media.video import VideoInfo, probe, read_clips, read_frames, require_audio
from avs_jax.media.video_writer import OverlayWriter, check_folder
from avs_jax.prediction.masks import Decision, measure_clips, peak_probabilities
from avs_jax.types import Float, UInt8

_MASK_NAME = re.compile(r"\d{6,}\.\d{3}\.png")


@dataclasses.dataclass(frozen=True)
class Mask:
    """What sounds at one time of the film: u8[h w], 0 or 1, or class ids if not `binary`.

    `peaks`: see `peak_probabilities`, if they were asked for.
    """

    time: float
    pixels: UInt8[np.ndarray, "h w"]
    binary: bool
    peaks: Float[np.ndarray, "k"] | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `predict_video` wrote and how long it took."""

    masks: int
    film_seconds: float
    elapsed: float  # seconds
    first: float  # of them until the first mask, with compilation
    output: str | None
    masks_dir: str | None
    sound: str  # "copied", "re-encoded" or "none"

    def __str__(self) -> str:
        sound = {"none": "no sound"}.get(self.sound, f"sound {self.sound}")
        lines = [f"overlay  {self.output} ({self.film_seconds:.1f} s, {sound})"]
        folder = [f"masks    {self.masks_dir} ({self.masks} PNG files)"]
        pace = self.film_seconds / max(self.elapsed, 1e-9)
        return "\n".join(
            (lines if self.output else [])
            + (folder if self.masks_dir else [])
            + [
                f"{self.masks} masks, {self.film_seconds:.1f} s of film in {self.elapsed:.1f} s: "
                f"{pace:.2f} x real time ({self.first:.1f} s until the first mask)"
            ]
        )


def predict_video(
    video: str | os.PathLike | VideoInfo,
    forward: Callable,
    *,
    size: int,
    seconds: int,
    frame_offset: float,
    output: str | os.PathLike | None = None,
    masks_dir: str | os.PathLike | None = None,
    fps: int = 1,
    allow_silent: bool = False,
    threshold: float = 0.5,
    batch_size: int = 1,
    class_names: Sequence[str] | None = None,
    alpha: float = 0.45,
    progress: bool = False,
    report: Callable[[float], None] | None = None,
    see: Callable[[Mask], None] | None = None,
) -> Summary:
    """Marks what sounds in a film: writes an overlay film, a folder of masks, or both.

    Nothing appears under its name, and nothing older is replaced, before all of it is complete.

    Args:
      video: path of a film, or what `video.probe` says of it.
      forward: as in `predict_masks`, with `size` ... `batch_size`.
      output: overlay film to write.
      masks_dir: folder for one PNG per mask, named by its time; masks of an earlier run go, other
        files stay.
      class_names: by class id, for the overlay's legend.
      alpha: weight of the overlay's colour, 0 to 1.
      progress: shows a bar.
      report: is told the seconds of film that are done, picture by picture; what it raises ends the
        work, and nothing is left of it.
      see: is given each mask, with its peaks, in the order of time.

    Raises:
      NotFoundError, BadValueError: see `video.probe`, `video.require_audio` and `OverlayWriter`.
    """
    started = time.monotonic()
    info = video if isinstance(video, VideoInfo) else probe(video)
    if not allow_silent:
        require_audio(info)
    settings = {"size": size, "seconds": seconds, "frame_offset": frame_offset, "fps": fps}
    settings |= {"allow_silent": allow_silent, "threshold": threshold, "batch_size": batch_size}
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        folder = enter(_MaskFolder(masks_dir, info)) if masks_dir else None
        writer = enter(OverlayWriter(output, info)) if output else None
        bar = enter(_Progress(info.duration, progress, report))
        times = []
        take = [lambda _: times.append(time.monotonic() - started), see]
        take.append(folder.save if folder is not None else None)
        take.append((lambda mask: bar.reach(mask.time)) if writer is None else None)
        masks = predict_masks(info, forward, peaks=see is not None, **settings)
        masks = _give(masks, *filter(None, take))
        if writer is not None:
            overlays = _Nearest(masks, class_names, alpha)
            for frame in read_frames(info):
                writer.write(frame, overlays.at(frame.time)(frame.rgb()))
                bar.reach(frame.time + frame.duration)
        for _ in masks:  # those after the last picture, or all if there is no overlay to draw
            pass
        film_seconds = bar.reached
        if writer is None:  # the last mask's second; the header may be wrong after a jump
            film_seconds = min(film_seconds + 1, info.duration or film_seconds)
        bar.reach(film_seconds)
    return Summary(
        masks=len(times),
        film_seconds=film_seconds,
        elapsed=time.monotonic() - started,
        first=times[0],
        output=os.fspath(output) if output else None,
        masks_dir=os.fspath(masks_dir) if masks_dir else None,
        sound=writer.sound if writer is not None else "none",
    )


def _give(masks: Iterable[Mask], *takers: Callable[[Mask], None]) -> Iterator[Mask]:
    for mask in masks:
        for take in takers:
            take(mask)
        yield mask


class _Progress:
    """A bar in seconds of film, and who else wants to know."""

    def __init__(self, duration: float | None, shown: bool, report: Callable | None):
        self.reached = 0.0
        self._report = report
        shape = "{n:.1f} s of film [{elapsed}]"
        if duration:
            shape = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of film [{elapsed}<{remaining}]"
        self._bar = tqdm(total=duration, bar_format=shape, disable=not shown, dynamic_ncols=True)

    def __enter__(self) -> "_Progress":
        return self

    def reach(self, seconds: float) -> None:
        step = max(0.0, seconds - self.reached)
        self.reached += step
        if self._bar.total is not None and self.reached > self._bar.total:
            self._bar.total = self.reached  # the header promised less
        self._bar.update(step)
        if self._report is not None:
            self._report(self.reached)

    def __exit__(self, *_) -> None:
        self._bar.close()


def predict_masks(
    info: VideoInfo,
    forward: Callable,
    *,
    size: int,
    seconds: int,
    frame_offset: float,
    fps: int = 1,
    allow_silent: bool = False,
    threshold: float = 0.5,
    batch_size: int = 1,
    peaks: bool = False,
) -> Iterator[Mask]:
    """Yields the masks of a film in the order of time, `fps` a second, of the film's size.

    Args:
      forward: `forward(frames u8[b t size size 3], waveform f32[b 16000 * t], frame_mask bool[b t])
        -> logits f32[b t h w k]` with b = batch_size and t = seconds, always of the same shapes:
        a film shorter than a clip is padded with masked frames, the last batch with copies.
      size, seconds, frame_offset, fps, allow_silent: see `video.read_clips`.
      threshold: probability above which a pixel sounds (k = 1); else the likeliest class is taken.
      peaks: masks come with theirs.

    Raises:
      BadValueError: logits of a frame that exists are NaN or infinite; with the times.
    """
    clips = read_clips(
        info,
        seconds=seconds,
        frame_offset=frame_offset,
        size=size,
        fps=fps,
        allow_silent=allow_silent,
    )
    decision = Decision(info.height, info.width, threshold=threshold)
    held: list[
        tuple[float, bytes, bool, np.ndarray | None]
    ] = []  # of the clip in hand, whose phases interleave
    index = 0
    measure = peak_probabilities if peaks else None
    measured = measure_clips(clips, forward, decision, batch_size, measure)
    for clip, masks, binary, found in measured:
        if clip.index != index:
            yield from _release(held, info)
            held, index = [], clip.index
        found = [None] * len(masks) if found is None else found
        for moment, pixels, peak in zip(clip.times, masks, found, strict=True):
            if np.isfinite(moment):  # packed: 10 s of 25 masks a second in 4K would take 2 GB
                held.append((float(moment), zlib.compress(pixels.tobytes(), 1), binary, peak))
    yield from _release(held, info)


def _release(held: list, info: VideoInfo) -> Iterator[Mask]:
    for moment, packed, binary, peak in sorted(held, key=lambda mask: mask[0]):
        pixels = np.frombuffer(zlib.decompress(packed), np.uint8)
        yield Mask(moment, pixels.reshape(info.height, info.width), binary, peak)


class _Nearest:
    """Overlays over a stream of masks: `at(time)`, for times that rise, is the nearest in time."""

    def __init__(self, masks: Iterator[Mask], class_names: Sequence[str] | None, alpha: float):
        self._masks = masks
        self._class_names, self._alpha = class_names, alpha
        self._show(next(masks))
        self._next = next(masks, None)

    def _show(self, mask: Mask) -> None:
        self._time = mask.time
        pixels = mask.pixels.astype(bool) if mask.binary else mask.pixels
        names = None if mask.binary else self._class_names
        self._overlay = Overlay(pixels, alpha=self._alpha, class_names=names)

    def at(self, moment: float) -> Overlay:
        while self._next is not None and self._next.time - moment <= moment - self._time:
            self._show(self._next)
            self._next = next(self._masks, None)
        return self._overlay


class _MaskFolder:
    """A folder of masks that appears, or takes the place of older masks, when it is complete."""

    def __init__(self, path: str | os.PathLike, info: VideoInfo):
        self._path = os.path.realpath(path)
        # Inside of a folder that is there: it may be a file system of its own.
        inside = os.path.join(self._path, "masks")
        self._partial = partial.hidden_name(inside if os.path.isdir(self._path) else self._path)
        self._info = info

    def __enter__(self) -> "_MaskFolder":
        if os.path.exists(self._path) and not os.path.isdir(self._path):
            raise errors.BadValueError(f"--masks {self._path!r} is a file; wanted a folder.")
        check_folder(self._partial)
        partial.remove(self._partial)  # of a killed run with the same number
        partial.begin(self._partial)
        os.mkdir(self._partial)
        return self

    def save(self, mask: Mask) -> None:
        pixels = mask.pixels * np.uint8(255) if mask.binary else mask.pixels
        try:
            write_png(os.path.join(self._partial, f"{mask.time:010.3f}.png"), pixels)
        except OSError as error:
            raise errors.BadValueError(
                f"cannot write a mask to {self._path!r}: {error.strerror}."
            ) from error

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._deliver()
        except OSError as failure:
            raise errors.BadValueError(
                f"cannot write to {self._path!r}: {failure.strerror}."
            ) from failure
        finally:
            partial.remove(self._partial)

    def _deliver(self) -> None:
        """Older masks go when all new ones are there."""
        if not os.path.isdir(self._path):
            os.rename(self._partial, self._path)
            return
        older = {name for name in os.listdir(self._path) if _MASK_NAME.fullmatch(name)}
        newer = set(os.listdir(self._partial))
        for name in newer:
            os.replace(os.path.join(self._partial, name), os.path.join(self._path, name))
        for name in older - newer:
            os.remove(os.path.join(self._path, name))
