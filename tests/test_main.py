"""`avs-jax PROGRAM`: one command for all programs."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import avs_jax
from avs_jax import __main__ as command
from avs_jax import errors


def start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "avs_jax", *arguments], capture_output=True, text=True
    )


def test_alone_it_lists_every_program_with_one_line(capsys):
    command.run([])
    lines = capsys.readouterr().out.splitlines()
    for name, (_, purpose) in command.PROGRAMS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, purpose]) == 1
    assert all(len(line) <= 100 for line in lines)


def is_program(path):
    guard = "__name__ == '__main__'"
    nodes = ast.parse(path.read_text()).body
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == guard for node in nodes)


def test_no_program_is_forgotten():
    root = Path(avs_jax.__file__).parent
    found = {
        ".".join(("avs_jax", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if path.name != "__main__.py" and is_program(path)
    }
    # Nobody calls it by hand: `media/sound.py` starts it for what may end a process.
    found.remove("avs_jax.media.sound_probe")
    assert found == {module for module, _ in command.PROGRAMS.values()}


def test_a_program_gets_its_arguments_and_ends_as_it_would_alone():
    alone = [sys.executable, "-m", "avs_jax.predict", "no-such-film.mp4", "--checkpoint", "."]
    alone += ["--output", "out.mp4"]
    expected = subprocess.run(alone, capture_output=True, text=True)
    found = start("predict", *alone[3:])
    assert (found.returncode, found.stderr) == (expected.returncode, expected.stderr)
    assert found.returncode == 2 and "no-such-film.mp4" in found.stderr


def test_unknown_program_lists_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match="unknown program 'predcit'; known: ben"):
        command.run(["predcit"])


def test_listing_imports_nothing_slow():
    # Someone who asks what there is should not wait for jax.
    code = "import sys, avs_jax.__main__ as m; m.run([]); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_installing_makes_the_command():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="avs-jax")
    assert entry.load() is command.main
