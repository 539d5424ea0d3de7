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
import functools
import os
import sys
from collections.abc import Sequence

from avs_jax import devices, errors
from avs_jax.config import mark_paths
from avs_jax.devices import quiet_libraries
from avs_jax.media.live_sink import open_sink
from avs_jax.media.live_source import open_source
from avs_jax.media.partial import removed_on_signals
from avs_jax.media.video import probe, require_audio
from avs_jax.media.video_writer import check_output
from avs_jax.prediction.films import predict_video
from avs_jax.prediction.live import leave_hanging_threads, open_log, run_live
from avs_jax.prediction.live_network import LiveNetwork
from avs_jax.prediction.masks import compile_forward
from avs_jax.weights import open_model, zoo
from avs_jax.weights.trained import MATMUL_PRECISIONS, Loaded


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
        "highest, but on a CPU its default)",
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


if __name__ == "__main__":
    errors.run_program(main)
