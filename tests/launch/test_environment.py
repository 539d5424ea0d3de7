"""The environment that the scripts make: which Python, what is installed, and when again."""

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run_bash(script, path):
    """What `script` prints after sourcing environment.sh, with `path` alone in PATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    done = subprocess.run(
        [shutil.which("bash"), "-c", f"source launch/environment.sh\n{script}"],
        cwd=path,
        env=environment | {"PATH": f"{path}/bin"},
        capture_output=True,
        text=True,
    )
    return done.stdout, done.stderr, done.returncode


@pytest.fixture
def clone(tmp_path):
    """A clone with a PATH of its own: what environment.sh calls, and no Python."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch/environment.sh", tmp_path / "launch")
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "cksum", "cat", "rm"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


@pytest.fixture
def clone_with_venv(clone):
    """... whose .venv/bin/python is a script that notes what pip is to install."""
    note = f'[ -e {clone}/no_network ] && exit 1; echo "${{@: -1}}" >>{clone}/installed'
    write_program(clone / ".venv/bin/python", note)
    return clone


def installed(clone):
    """[extras of every install so far]"""
    lines = (clone / "installed").read_text().splitlines()
    return [line.removeprefix(str(clone)) for line in lines]


# ---------------------------------------------------------------- which Python


def test_newest_known_python_is_taken(clone):
    for version in ("3.11", "3.13"):
        write_program(clone / f"bin/python{version}", f'exec {sys.executable} "$@"')
    assert run_bash("find_python", clone)[0] == "python3.13\n"


def test_shim_of_a_version_that_is_not_chosen_is_passed_over(clone):
    not_chosen = "echo pyenv: command not found >&2; exit 127"
    write_program(clone / "bin/python3.13", not_chosen)
    write_program(clone / "bin/python3.12", not_chosen)
    write_program(clone / "bin/python3.11", f'exec {sys.executable} "$@"')
    assert run_bash("find_python", clone) == ("python3.11\n", "", 0)


def test_python_without_venv_is_passed_over(clone):
    lacks = """import sys; sys.modules["ensurepip"] = None; exec(sys.argv.pop())"""
    write_program(clone / "bin/python3.12", f"exec {sys.executable} -c '{lacks}' \"$2\"")
    write_program(clone / "bin/python3", f'exec {sys.executable} "$@"')
    assert run_bash("find_python", clone)[0] == "python3\n"


def test_without_a_python_the_cure_is_told(clone):
    out, told, status = run_bash("find_python", clone)
    assert (out, status) == ("", 1) and "Python 3.11 or newer with venv" in told


# ---------------------------------------------------------------- what is installed


def test_extra_that_came_with_another_is_not_installed_again(clone_with_venv):
    calls = "prepare_environment test,convert; prepare_environment test; prepare_environment"
    run_bash(calls, clone_with_venv)
    assert installed(clone_with_venv) == ["[test,convert]"]


def test_extra_that_is_missing_is_installed(clone_with_venv):
    run_bash("prepare_environment test; prepare_environment test,convert", clone_with_venv)
    assert installed(clone_with_venv) == ["[test]", "[test,convert]"]


def test_new_requirements_are_installed(clone_with_venv):
    run_bash("prepare_environment test; echo >>setup.cfg; prepare_environment", clone_with_venv)
    assert installed(clone_with_venv) == ["[test]", ""]


def test_failed_install_is_tried_again(clone_with_venv):
    (clone_with_venv / "no_network").touch()
    assert run_bash("prepare_environment test || exit 7", clone_with_venv)[2] == 7
    (clone_with_venv / "no_network").unlink()
    run_bash("prepare_environment test", clone_with_venv)
    assert installed(clone_with_venv) == ["[test]"]


def test_only_conversion_brings_pytorch():
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    requirements = dict(options["options.extras_require"])
    requirements["always"] = options["options"]["install_requires"]
    assert [name for name, text in requirements.items() if "torch" in text] == ["convert"]


# ---------------------------------------------------------------- what is started


def test_scripts_start_modules_that_exist():
    texts = [
        path.read_text()
        for path in (ROOT / "launch").iterdir()
        if path.suffix not in (".png", ".jpg")
    ]
    modules = {name for text in texts for name in re.findall(r"-m[\s-]+(avs_jax[\w.]*)", text)}
    assert "avs_jax.train" in modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
