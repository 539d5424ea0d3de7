"""What `pip install` brings: a wheel, unpacked elsewhere, marks a film with nothing to fetch."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import avs_jax
from avs_jax.weights import zoo
from tests import quick_xla
from tests.media import film

ROOT = Path(avs_jax.__file__).parents[1]
BUILD = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves folders behind, and would pack what is left in them."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    shutil.copytree(
        ROOT / "avs_jax", tree / "avs_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([*BUILD, *OFFLINE, "--wheel-dir", str(folder), str(tree)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_models_and_their_cards(wheel):
    files = {x.filename: x.file_size for x in zipfile.ZipFile(wheel).infolist()}
    for name in zoo.NAMES:
        for suffix in ("npz", "json", "md"):
            assert files[f"avs_jax/weights/zoo/{name}.{suffix}"] > 0
    assert sum(size for name, size in files.items() if "/zoo/" in name) < 20e6
    assert "avs_jax/backbones/yamnet_classes.txt" in files
    assert {"avs_jax/demo.css", "avs_jax/demo.js"} <= set(files)


def test_unpacked_wheel_marks_a_film(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    path = film.write_film(tmp_path / "a.mp4", seconds=1)
    code = (
        "import avs_jax, runpy; print(avs_jax.__file__); "
        "runpy.run_module('avs_jax', run_name='__main__', alter_sys=True)"
    )
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "XLA_FLAGS": quick_xla.FLAGS,
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", path],
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    )
    assert str(tmp_path / "site") in done.stdout
    assert "model lite: avesformer of the package" in done.stdout
    assert (tmp_path / "a_overlay.mp4").stat().st_size > 0
