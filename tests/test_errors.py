"""Errors: builtin types, one line, exit code 2."""

import errno
import os
from pathlib import Path

import pytest

from avs_jax import errors


def test_unknown_name_lists_the_known_ones_and_is_a_key_error():
    with pytest.raises(KeyError) as info:
        raise errors.unknown_name("model", "catrr", ["pcmanet", "catr"])
    assert str(info.value) == "unknown model 'catrr'; known: catr, pcmanet."


@pytest.mark.parametrize(
    "error, line",
    [
        (errors.BadValueError("a=1 is odd."), "ValueError: a=1 is odd."),
        (errors.NotFoundError("no a."), "FileNotFoundError: no a."),
        (errors.UnknownNameError("unknown a."), "KeyError: unknown a."),
    ],
    ids=lambda x: type(x).__name__,
)
def test_program_ends_with_one_line_and_code_2(capsys, monkeypatch, error, line):
    monkeypatch.delenv("AVS_JAX_TRACEBACK", raising=False)

    def program():
        raise error

    with pytest.raises(SystemExit) as info:
        errors.run_program(program)
    assert info.value.code == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_bug_keeps_its_traceback():
    def program():
        raise ValueError("a bug of ours")

    with pytest.raises(ValueError, match="a bug of ours"):
        errors.run_program(program)


def test_writable_folder_is_made_and_left_empty(tmp_path):
    errors.check_writable("--output", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_folder_that_cannot_be_made_is_told_with_its_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadValueError, match=r"^--masks .*/b is not writable \(Not a dir"):
        errors.check_writable("--masks", tmp_path / "file" / "b")


def test_a_full_disk_is_found_behind_what_a_library_makes_of_it():
    def raise_chained():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("the save failed") from error

    with pytest.raises(errors.BadValueError, match=r"^--workdir w: no space left on device; make"):
        with errors.told_of_full_disk("--workdir", Path("w"), "Go on."):
            raise_chained()
    text = ExceptionGroup("saves", [ValueError("RESOURCE_EXHAUSTED: No space left on device")])
    with pytest.raises(errors.BadValueError, match="no space left on device"):
        with errors.told_of_full_disk("--workdir", Path("w"), "Go on."):
            raise text
    with pytest.raises(KeyError):
        with errors.told_of_full_disk("--workdir", Path("w"), "Go on."):
            raise KeyError("something else")
