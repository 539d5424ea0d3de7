"""Mark what sounds in a video of your own.

    python -m avs_jax.predict VIDEO
    python -m avs_jax.predict VIDEO --model WORKDIR --output OVERLAY.mp4 [--masks DIR]

VIDEO is any film with sound that FFmpeg reads, of any length, size and rate. OVERLAY.mp4 is the
film with what sounds marked in colour, and its sound; where nothing is named to be written it is
NAME_overlay.mp4 in this folder. DIR gets one PNG per mask, of the film's size: 000012.500.png is
the mask of the picture at 12.5 s, 0 or 255 (or the class id, for a model that names what sounds).

Without --model it is `lite`, the small one that comes with the package (weights/zoo/lite.md says
what it knows).

A model sees clips of some seconds, one picture each, so there is one mask a second; --fps 4 gives
four, each from the picture and the sound around it, as `lite` does unless told otherwise. Every
picture of the overlay carries the mask nearest in time. The film is read and written piece by
piece: its length is limited by the disk alone.

    python -m avs_jax.predict --live SOURCE [--output http://127.0.0.1:8080] [--live_log FILE]

marks what comes as it comes, each picture by the sound before it: a camera, a stream by FFmpeg's
name, or a film at its own pace. Pictures that there is no time for are dropped; every second a line
says how many, and how late the others were. Ctrl-C ends it, and what was written plays.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from avs_jax import devices, errors
from avs_jax.config import mark_paths
from avs_jax.devices import quiet_libraries
from avs_jax.media import partial
from avs_jax.media.drawing import Overlay, write_png
from avs_jax.media.live_sink import open_sink
from avs_jax.media.live_source import open_source
from avs_jax.media.partial import removed_on_signals
from avs_jax.media.video import VideoInfo, probe, read_clips, read_frames, require_audio
from avs_jax.media.video_writer import OverlayWriter, check_folder, check_output
from avs_jax.prediction.live import leave_hanging_threads, open_log, run_live
from avs_jax.prediction.live_network import LiveNetwork
from avs_jax.prediction.masks import Decision, compile_forward, run_clips
from avs_jax.types import UInt8
from avs_jax.weights import open_model, zoo
from avs_jax.weights.trained import MATMUL_PRECISIONS, Loaded

_MASK_NAME = re.compile(r"\d{6,}\.\d{3}\.png")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    quiet_libraries()
    if args.live is not None:
        _run_live(args)
        return
    with removed_on_signals():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    info = probe(args.video)  # what is wrong with the film is said before the model is loaded
    if not args.allow_silent:
        require_audio(info)
    if args.output:
        check_output(args.output, info.path)
    devices.start_jax()
    loaded = open_model(args.model, args.which, args.config)
    print(describe(args.model, loaded), flush=True)
    data = loaded.config.data
    summary = predict_video(
        info,
        compile_forward(loaded, args.matmul_precision),
        size=data.size,
        seconds=data.seconds,
        frame_offset=float(data.frame_offset),
        output=args.output,
        masks_dir=args.masks,
        fps=args.fps,
        allow_silent=args.allow_silent,
        threshold=loaded.threshold if args.threshold is None else args.threshold,
        batch_size=args.batch_size,
        class_names=loaded.class_names,
        progress=True,
    )
    print(summary)


def _run_live(args: argparse.Namespace) -> None:
    say = functools.partial(print, flush=True, file=sys.stderr if args.output == "-" else None)
    with contextlib.ExitStack() as stack:
        with removed_on_signals():
            source = open_source(
                args.live,
                sound=args.live_sound,
                speed=args.live_speed,
                loop=args.live_loop,
                allow_silent=args.allow_silent,
            )
            sink = stack.enter_context(open_sink(args.output, args.live))
            log = stack.enter_context(open_log(args.live_log)) if args.live_log else None
            devices.start_jax()
            loaded = open_model(args.model, args.which, args.config)
            say(describe(args.model, loaded))
            network = LiveNetwork(loaded, args.matmul_precision)
            network.warm_up()
        summary = run_live(
            source,
            network,
            sink,
            threshold=loaded.threshold if args.threshold is None else args.threshold,
            class_names=loaded.class_names,
            seconds=args.live_seconds,
            output=args.output,
            log=log,
            say=say,
        )
        say(summary)
    leave_hanging_threads()


def describe(model: str, loaded: Loaded) -> str:
    """Which model it is, in one line."""
    of = "the package" if zoo.is_zoo(model) else model
    name = f"model {model}: " if zoo.is_zoo(model) else ""
    return f"{name}{loaded.config.model.name} of {of}, step {loaded.step}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what cannot be is refused here."""
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("video", nargs="?", help="the film")
    add(
        "--model",
        "--checkpoint",
        default=zoo.DEFAULT,
        metavar="DIR",
        help=f"{', '.join(zoo.NAMES)} (of the package), WORKDIR of a run, or converted weights "
        f"(default: {zoo.DEFAULT})",
    )
    add("--config", metavar="FILE[:ARGS]", help="the config that converted weights are for")
    add("--which", default="best", help="best, latest or a step (default: best)")
    add("--output", metavar="FILE", help="overlay film to write: .mp4, .mov or .mkv")
    add("--masks", metavar="DIR", help="folder for one PNG per mask; older masks in it go")
    add(
        "--fps",
        type=int,
        metavar="F",
        help="masks a second (default: 1; of the package's models 4)",
    )
    add("--allow_silent", "--allow-silent", action="store_true", help="take no sound as silence")
    add("--threshold", type=float, help="of a sounding pixel's probability (default: the model's)")
    add("--batch_size", "--batch-size", type=int, default=1, help="clips at a time (default: 1)")
    add(
        "--matmul_precision",
        choices=MATMUL_PRECISIONS,
        help="of products in float32 (default: as the run's config says; converted weights: "
        "highest)",
    )
    live = parser.add_argument_group("live").add_argument
    live(
        "--live",
        metavar="SOURCE",
        help="rtsp://..., udp://..., pipe:0 or - (stdin), camera, /dev/video0, FORMAT:NAME by "
        "FFmpeg's names, or a film",
    )
    live(
        "--live_sound",
        "--live-sound",
        metavar="SOURCE",
        help="a microphone, FORMAT:NAME (of a Linux camera: alsa:default)",
    )
    live("--live_log", "--live-log", metavar="FILE", help="a JSON line a second; - is stdout")
    live("--live_speed", "--live-speed", type=float, default=1.0, help="of a film's pace")
    live("--live_loop", "--live-loop", action="store_true", help="a film begins again at its end")
    live("--live_seconds", "--live-seconds", type=float, help="to run (default: until it ends)")
    args = parser.parse_args(mark_paths(parser, sys.argv[1:] if argv is None else argv))
    _check_live(args)
    if not args.live and not args.output and not args.masks:
        args.output = f"{os.path.splitext(os.path.basename(args.video))[0]}_overlay.mp4"
    if args.fps is None:  # theirs look at each picture alone, and are fast
        args.fps = 4 if zoo.is_zoo(args.model) else 1
    for name in ("fps", "batch_size"):
        if getattr(args, name) < 1:
            raise errors.BadValueError(f"--{name}={getattr(args, name)}: wanted 1 or more.")
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise errors.BadValueError(
            f"--threshold={args.threshold}: wanted a probability between 0 and 1."
        )
    return args


def _check_live(args: argparse.Namespace) -> None:
    if (args.live is None) == (args.video is None):
        raise errors.BadValueError("wanted a VIDEO or --live SOURCE, one of them.")
    if args.live is None:
        return
    clips_alone = {"masks": None, "fps": None, "batch_size": 1}
    for name, unset in clips_alone.items():
        if getattr(args, name) != unset:
            raise errors.BadValueError(
                f"--{name} is not for --live, which marks each picture as it comes; leave it out."
            )
    if args.live_log == "-" and args.output == "-":
        raise errors.BadValueError("--live_log - and --output - are both stdout; name a file.")


@dataclasses.dataclass(frozen=True)
class Mask:
    """What sounds at one time of the film: u8[h w], 0 or 1, or class ids if not `binary`."""

    time: float
    pixels: UInt8[np.ndarray, "h w"]
    binary: bool


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
    progress: bool = False,
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
      progress: shows a bar.

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
        folder = stack.enter_context(_MaskFolder(masks_dir, info)) if masks_dir else None
        writer = stack.enter_context(OverlayWriter(output, info)) if output else None
        bar = stack.enter_context(_Progress(info.duration, progress))
        times = []

        def keep(masks: Iterable[Mask]) -> Iterator[Mask]:
            for mask in masks:
                times.append(time.monotonic() - started)
                if folder is not None:
                    folder.save(mask)
                if writer is None:
                    bar.reach(mask.time)
                yield mask

        masks = keep(predict_masks(info, forward, **settings))
        if writer is not None:
            overlays = _Nearest(masks, class_names)
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


class _Progress:
    """A bar in seconds of film."""

    def __init__(self, duration: float | None, shown: bool):
        self.reached = 0.0
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
) -> Iterator[Mask]:
    """Yields the masks of a film in the order of time, `fps` a second, of the film's size.

    Args:
      forward: `forward(frames u8[b t size size 3], waveform f32[b 16000 * t], frame_mask bool[b t])
        -> logits f32[b t h w k]` with b = batch_size and t = seconds, always of the same shapes:
        a film shorter than a clip is padded with masked frames, the last batch with copies.
      size, seconds, frame_offset, fps, allow_silent: see `video.read_clips`.
      threshold: probability above which a pixel sounds (k = 1); else the likeliest class is taken.

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
    held: list[tuple[float, bytes, bool]] = []  # of the clip in hand, whose phases interleave
    index = 0
    for clip, masks, binary in run_clips(clips, forward, decision, batch_size):
        if clip.index != index:
            yield from _release(held, info)
            held, index = [], clip.index
        for moment, pixels in zip(clip.times, masks, strict=True):
            if np.isfinite(moment):  # packed: 10 s of 25 masks a second in 4K would take 2 GB
                held.append((float(moment), zlib.compress(pixels.tobytes(), 1), binary))
    yield from _release(held, info)


def _release(held: list, info: VideoInfo) -> Iterator[Mask]:
    for moment, packed, binary in sorted(held):
        pixels = np.frombuffer(zlib.decompress(packed), np.uint8)
        yield Mask(moment, pixels.reshape(info.height, info.width), binary)


class _Nearest:
    """Overlays over a stream of masks: `at(time)`, for times that rise, is the nearest in time."""

    def __init__(self, masks: Iterator[Mask], class_names: Sequence[str] | None):
        self._masks = masks
        self._class_names = class_names
        self._show(next(masks))
        self._next = next(masks, None)

    def _show(self, mask: Mask) -> None:
        self._time = mask.time
        pixels = mask.pixels.astype(bool) if mask.binary else mask.pixels
        names = None if mask.binary else self._class_names
        self._overlay = Overlay(pixels, class_names=names)

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


if __name__ == "__main__":
    errors.run_program(main)
