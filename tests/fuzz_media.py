"""Damages films in every way that comes to mind, and looks at what `predict` makes of them.

    python -m tests.fuzz_media [--films 500] [--minutes 10] [--seed 0]

Films carry their own time in picture and sound (tests/media/timed.py). Their bytes, or the stamps
of their packets, are damaged by a generator with a seed; then they go through reading, a stand-in
for the model, and writing, and the result is read back with PyAV alone. Prints a table and exits 1
if there was a trace, a dead process, an endless film, or sound and picture apart by over 0.04 s.
"""

import argparse
import collections
import concurrent.futures
import multiprocessing
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import numpy as np

from avs_jax import errors
from avs_jax.prediction import films
from tests.media import timed

SECONDS = 6
_APART = 0.04  # seconds
BAD = ("TRACE", "DIED", "APART", "ENDLESS")  # how outcomes begin that must not be
_PATIENCE = 120  # seconds for one film
FILMS = {  # name -> how it is written
    "a.ts": {"rate": 48_000},
    "b.ts": {"sound_codec": "mp2"},
    "a.flv": {"rate": 44_100},
    "a.mp4": {},
    "a.mkv": {"sound_codec": "pcm_s16le"},
    "b.mkv": {"sound_codec": "mp2"},
    "a.webm": {"codec": "libvpx-vp9", "sound_codec": "libopus"},
    "a.avi": {"codec": "mpeg4", "sound_codec": "mp3", "rate": 44_100},
    "a.mov": {"sound_codec": "pcm_s16le"},
}


def write_films(folder: pathlib.Path) -> None:
    for name, options in FILMS.items():
        timed.write(folder / name, SECONDS, all_key=True, **options)
    for name in ("a.ts", "a.flv"):
        path = folder / f"next-{name}"
        timed.write(path, SECONDS / 2, SECONDS, all_key=True, **FILMS[name])


# --- damage -----------------------------------------------------------------------------------


def flip_bits(data: bytes, rng) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    for place in rng.integers(len(array), size=int(rng.integers(1, 40))):
        array[place] ^= 1 << rng.integers(8)
    return array.tobytes()


def overwrite(data: bytes, rng) -> bytes:
    begin = int(rng.integers(len(data)))
    length = int(rng.integers(1, 4000))
    return data[:begin] + rng.bytes(min(length, len(data) - begin)) + data[begin + length :]


def cut_out(data: bytes, rng) -> bytes:
    begin = int(rng.integers(len(data)))
    return data[:begin] + data[begin + int(rng.integers(1, 6000)) :]


def repeat_bytes(data: bytes, rng) -> bytes:
    begin = int(rng.integers(len(data)))
    end = begin + int(rng.integers(1, 6000))
    return data[:end] + data[begin:]


def cut_off(data: bytes, rng) -> bytes:
    return data[: int(rng.uniform(0.05, 1) * len(data))]


BYTES: dict[str, Callable] = {
    "flipped bits": flip_bits,
    "overwritten": overwrite,
    "bytes cut out": cut_out,
    "bytes repeated": repeat_bytes,
    "cut off": cut_off,
}


def _units(name: str):
    """(what changes a format's stamps, ticks of a second)."""
    if name.endswith(".flv"):
        return timed.shift_flv, 1000
    return timed.shift_ts, 90_000


def jump(name: str, data: bytes, rng) -> bytes:
    shift, second = _units(name)
    begin = rng.uniform(1, SECONDS - 1) * second
    far = name.endswith(".ts") and rng.random() < 0.5
    by = rng.uniform(11, 80_000) if far else -rng.uniform(1.5, min(begin / second, 5) + 0.5)
    return shift(data, lambda _at, _kind, ticks: ticks + round(by * second) * (ticks > begin))


def one_wrong(name: str, data: bytes, rng) -> bytes:
    shift, second = _units(name)
    which = set(rng.integers(0, 200, size=3).tolist())
    by = round(rng.uniform(-5, 20) * second)
    return shift(data, lambda at, _kind, ticks: max(0, ticks + by * (at in which)))


def repeated(name: str, data: bytes, rng) -> bytes:
    shift, second = _units(name)
    begin = rng.uniform(1, SECONDS - 1) * second
    end = begin + rng.uniform(0.05, 0.8) * second
    return shift(data, lambda _, _kind, ticks: round(begin) if begin < ticks < end else ticks)


def missing(name: str, data: bytes, rng) -> bytes:
    shift, second = _units(name)
    begin = rng.uniform(0, SECONDS) * second
    end = begin + rng.uniform(0.1, SECONDS) * second
    return shift(data, lambda _, _kind, ticks: None if begin < ticks < end else ticks)


def wrapped(name: str, data: bytes, rng) -> bytes:
    shift, second = _units(name)
    top = 2**33 if name.endswith(".ts") else 2**31
    by = top - round(rng.uniform(0.5, SECONDS) * second)
    return shift(data, lambda _, _kind, ticks: (ticks + by) % top)


STAMPS: dict[str, Callable] = {
    "clock jumps": jump,
    "wrong stamps": one_wrong,
    "stamps repeated": repeated,
    "stamps missing": missing,
    "clock wraps": wrapped,
}


def damage(folder: pathlib.Path, kind: str, rng) -> pathlib.Path:
    """Writes a damaged film and returns its path."""
    names = sorted(FILMS) if kind in BYTES else ["a.ts", "b.ts", "a.flv"]
    if kind == "recordings joined":
        names = ["a.ts", "a.flv"]
    if kind == "sound lost":
        names = ["a.mkv", "b.mkv", "a.webm", "a.mp4"]
    name = names[int(rng.integers(len(names)))]
    path = folder / f"damaged{pathlib.Path(name).suffix}"
    if kind == "sound lost":
        begin = rng.uniform(1, SECONDS - 2)
        timed.lose_sound(folder / name, path, begin, begin + rng.uniform(0.01, 2))
    elif kind == "recordings joined":
        timed.join(path, [folder / name, folder / f"next-{name}"])
    else:
        data = (folder / name).read_bytes()
        path.write_bytes(BYTES[kind](data, rng) if kind in BYTES else STAMPS[kind](name, data, rng))
    return path


KINDS = (*BYTES, *STAMPS, "recordings joined", "sound lost")


# --- what becomes of it -----------------------------------------------------------------------


def _mark_nothing(frames, waveform, frame_mask):
    del waveform, frame_mask
    return np.full((*frames.shape[:4], 1), -5.0, np.float32)


def try_film(folder: pathlib.Path, seed: int, index: int) -> tuple[str, str, str, float]:
    """Damages one film and segments it: (kind of damage, name, outcome, memory in GB)."""
    rng = np.random.default_rng([seed, index])
    kind = KINDS[index % len(KINDS)]
    path = damage(folder, kind, rng)
    output, masks = folder / "out.mp4", folder / "masks"
    for old in (output, masks):
        shutil.rmtree(old, ignore_errors=True) if old == masks else old.unlink(missing_ok=True)
    try:
        films.predict_video(
            path,
            _mark_nothing,
            size=32,
            seconds=2,
            frame_offset=0.5,
            output=output,
            masks_dir=masks,
            allow_silent=True,
        )
        outcome = judge(output, masks)
        if path.suffix == ".avi" and outcome.startswith("APART"):
            outcome = "AVI, no stamps"  # it counts: what is lost or doubled moves all that follows
    except errors.InputError as error:
        outcome = "refused in a line" if "\n" not in str(error) else "TRACE: of several lines"
    except Exception as error:
        calls = [call for call in traceback.extract_tb(error.__traceback__) if "avs_jax" in call[0]]
        place = f"{os.path.basename(calls[-1].filename)}:{calls[-1].lineno}" if calls else "here"
        outcome = f"TRACE: {type(error).__name__} {error} ({place})"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return kind, path.suffix, outcome, memory


def judge(output: pathlib.Path, masks: pathlib.Path) -> str:
    """What is wrong with an overlay film and its masks."""
    if len(os.listdir(masks)) > 3 * SECONDS:
        return f"ENDLESS: {len(os.listdir(masks))} masks"
    try:
        pictures, sound = timed.read_back(output)
    except IndexError:  # no sound is left
        return "without sound"
    if len(pictures) < 3 or len(sound) < 6 or not len(timed.differences(pictures, sound)):
        return "too little to measure"
    # Decoders put a picture before in the place of one that is damaged: such do not last.
    apart = timed.worst(pictures, sound, windows=15)
    return f"APART: {apart:+.3f} s" if abs(apart) > _APART else "in step"


def _start(folder: str) -> None:
    os.nice(10)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.chdir(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun, table, bad, most = time.monotonic(), collections.Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_films(folder)
        pool = _open_pool(name)
        count = 0
        for index in range(args.films):
            if time.monotonic() - begun > 60 * args.minutes:
                break
            try:
                future = pool.submit(try_film, folder, args.seed, index)
                kind, suffix, outcome, memory = future.result(_PATIENCE)
                most = max(most, memory)
            except (concurrent.futures.process.BrokenProcessPool, TimeoutError) as error:
                kind, suffix = KINDS[index % len(KINDS)], ""
                outcome = f"DIED: {type(error).__name__}"
                for process in list(pool._processes.values()):
                    process.kill()
                pool.shutdown(cancel_futures=True)
                pool = _open_pool(name)
            count += 1
            table[kind, outcome.partition(":")[0]] += 1
            if outcome.startswith(BAD):
                bad.append(f"{index}: {kind} {suffix}: {outcome}")
                print(bad[-1], file=sys.stderr)
        pool.shutdown()
    columns = ["in step", "refused in a line", "without sound", "too little to measure"]
    columns += ["AVI, no stamps"]
    columns += sorted({outcome for _, outcome in table} - set(columns))
    print(f"{'':<20}" + "".join(f"{column:>23}" for column in columns))
    for kind in KINDS:
        print(f"{kind:<20}" + "".join(f"{table[kind, column]:>23}" for column in columns))
    spent = time.monotonic() - begun
    print(
        f"{count} films in {spent:.0f} s, seed {args.seed}; at most {most:.2f} GB; {len(bad)} bad"
    )
    sys.exit(bool(bad) or most > 1)


def _open_pool(folder: str):
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        1, context, initializer=_start, initargs=(folder,)
    )


if __name__ == "__main__":
    from tests import fuzz_media as module  # worker processes cannot import __main__

    module.main()
