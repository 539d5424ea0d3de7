"""One command for all programs: `avs-jax PROGRAM ...` is `python -m avs_jax.PROGRAM ...`.

avs-jax                      the programs, one line each
avs-jax predict --help       what a program takes
"""

import runpy
import sys
from collections.abc import Sequence

from avs_jax import __version__, errors

# program -> (its module, what it is for)
PROGRAMS: dict[str, tuple[str, str]] = {
    "predict": ("avs_jax.predict", "mark what sounds in a video of your own"),
    "demo": ("avs_jax.demo", "a page in the browser: drop a film, see what sounds in it"),
    "train": ("avs_jax.train", "train a model"),
    "evaluate": ("avs_jax.evaluate", "every figure of a checkpoint on a split of a data set"),
    "pictures": ("avs_jax.pictures", "strips of clips, what goes on inside, the learning curve"),
    "export": ("avs_jax.export", "a model as one file that runs by jax alone, or by ONNX"),
    "convert": ("avs_jax.convert", "published PyTorch weights to ours, and back"),
    "benchmark": ("avs_jax.benchmark", "what a model costs: time, memory, FLOPs, parameters"),
    "check-data": ("avs_jax.data.check", "what is wrong with a download of AVSBench"),
    "build-avsbench": ("avs_jax.data.avsbench.build", "AVSBench -> a data set to train on"),
    "build-shapes": ("avs_jax.data.sounding_shapes.build", "the embedded data set, made here"),
    "build-stamps": ("avs_jax.data.stamps.build", "real cut-outs and sounds, composed here"),
    "unpack-media": ("avs_jax.data.stamps.unpack", "what launch/fetch_media.sh fetched"),
    "benchmark-data": ("avs_jax.data.benchmark", "how fast clips are read"),
}


def list_programs() -> str:
    """The programs, one line each."""
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in PROGRAMS.items()]
    return "\n".join(
        [
            f"avs_jax {__version__}: audio-visual segmentation in JAX. `avs-jax PROGRAM --help`:",
            "",
            *lines,
        ]
    )


def run(argv: Sequence[str]) -> None:
    """Runs the program that `argv` names, as `python -m` would; without one lists them.

    Raises:
      UnknownNameError: there is no such program.
    """
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(list_programs())
        return
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in PROGRAMS:
        raise errors.unknown_name("program", argv[0], PROGRAMS)
    module, _ = PROGRAMS[argv[0]]
    sys.argv = [module, *argv[1:]]
    # As __main__, so that a program is one thing however it is started, its end on an error too.
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    errors.run_program(run, sys.argv[1:])


if __name__ == "__main__":
    main()
