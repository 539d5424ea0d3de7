"""A folder of media as `unpack` writes it, of made-up pictures and sounds."""

import hashlib
import io
import json
import pathlib

import numpy as np
from PIL import Image

from avs_jax.data.stamps import media, unpack

# class -> ((source, colour) of its pictures, (source, hertz, seconds) of its sounds)
TABLE = {
    # both packages, not of CROSS_CLASSES: learns from T, tested on F
    "dog": (
        (("T:dog.png", (200, 40, 40)), ("F:dog.svg", (160, 20, 20))),
        (("T:dog.ogg", 300, 1.5), ("F:dog.ogg", 330, 1.2)),
    ),
    # of CROSS_CLASSES: T is for cross
    "cow": (
        (("F:cow.svg", (40, 200, 40)), ("T:cow.png", (20, 160, 20))),
        (("F:cow.ogg", 500, 2.0), ("T:cow.ogg", 550, 2.0)),
    ),
    "trumpet": (
        (("I:trumpet.svg", (40, 40, 200)), ("T:trumpet.png", (20, 20, 160))),
        (("I:trumpet.ogg", 900, 5.0),),
    ),
    "crow": (((("T:crow.png"), (200, 200, 40)),), (("T:crow.ogg", 1500, 6.0),)),
    "goat": (((("T:goat.png"), (200, 40, 200)),), (("T:goat.ogg", 2200, 0.7),)),
    "bear": (((("T:bear.png"), (90, 60, 30)),), (("T:bear.ogg", 120, 2.0),)),  # weak
    "turkey": (
        (("T:turkey.png", (240, 240, 240)), ("L:turkey.webp", (10, 10, 10))),
        (("T:turkey.ogg", 3000, 2.0),),
    ),
}


def make_cutout(colour, width=60, height=40):
    """An opaque ellipse with a soft edge on nothing, of one colour."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5) * 2
    alpha = np.clip((1 - distance) * min(width, height) / 3, 0, 1)
    rgba = np.empty((height, width, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, np.round(255 * alpha)
    return np.pad(rgba, ((5, 3), (2, 4), (0, 0)))  # empty round it, as stamps are


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _tone(hertz, seconds):
    t = np.arange(round(seconds * 16_000)) / 16_000
    return unpack.encode_wav(0.3 * np.sin(2 * np.pi * hertz * t))


def write_media(folder) -> pathlib.Path:
    """Fills a folder; returns it."""
    folder, files = pathlib.Path(folder), {}
    entries = {"pictures": [], "sounds": []}
    for name, (pictures, sounds) in TABLE.items():
        for source, colour in pictures:
            file = "pictures/" + source.replace(":", "/") + ".png"
            files[file] = _png(make_cutout(colour))
            entries["pictures"].append({"class": name, "source": source, "file": file})
        for source, hertz, seconds in sounds:
            file = "sounds/" + source.replace(":", "/") + ".wav"
            files[file] = _tone(hertz, seconds)
            entries["sounds"].append({"class": name, "source": source, "file": file})
    rng = np.random.default_rng(0)
    lists = {"silent": [], "backgrounds": [], "noises": [], "speech": []}
    for i in range(4):
        coarse = rng.integers(60, 160, (5, 7, 3), dtype=np.uint8)
        for kind, content in (
            ("silent", _png(make_cutout((120, 120, 20 * i), 30, 50))),
            ("backgrounds", _png(coarse.repeat(40, axis=0).repeat(40, axis=1))),
            ("noises", _tone(4000 + 100 * i, 1.5)),
        ):
            file = f"{kind}/{i}.{'wav' if kind == 'noises' else 'png'}"
            files[file] = content
            lists[kind].append(file)
    for i, language in enumerate(("en", "fr", "ro", "ru")):
        files[f"speech/{language}.wav"] = _tone(5000 + 100 * i, 1.0)
        lists["speech"].append({"language": language, "file": f"speech/{language}.wav"})
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sha256 = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    manifest = {"format": media.FORMAT, **entries, **lists, "sha256": sha256}
    (folder / media.MANIFEST).write_text(json.dumps(manifest))
    return folder
