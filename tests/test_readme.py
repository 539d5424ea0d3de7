"""Every command that people are told to type is one that the program takes; every block runs."""

import argparse
import copy
import importlib
import importlib.util
import re
import shlex
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest.mock import create_autospec, patch

import jax
import jax.export
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import avs_jax
import avs_jax.train
from avs_jax import errors
from avs_jax.__main__ import PROGRAMS
from avs_jax.config import check_fields, read_config
from avs_jax.prediction.model import Model, load

ROOT = Path(__file__).parents[1]
PACKAGE_FILES = sorted(
    path for folder in ("avs_jax", "configs") for path in (ROOT / folder).rglob("*.py")
)
TOLD = [
    *(ROOT / "README.md", ROOT / "launch/README.md"),
    *sorted((ROOT / "avs_jax").rglob("*.md")),
    *sorted((ROOT / "launch").glob("*.sh")),
    *PACKAGE_FILES,
]
COMMAND = re.compile(
    r"(?:python -m (?P<module>(?:avs_jax|tests)[\w.]*)|avs-jax (?P<program>[a-z]+)\b)"
)
# What stands for something that has to be one of a program's choices.
NAMES = {"NETWORK": "resnet50", "CONFIG": "configs/quickstart.py"}


class Told(NamedTuple):
    """A command that a file tells people to type."""

    file: str
    module: str
    arguments: tuple[str, ...]

    def __str__(self):
        return f"{self.file}: {self.module} {' '.join(self.arguments)}"


def text_of(path):
    """What of a file is read by people: of Python its first docstring."""
    text = path.read_text()
    if path.suffix == ".py":
        found = re.match(r'r?"""(.*?)"""', text, re.DOTALL)
        text = found[1] if found else ""
    return re.sub(r"\s*\\\n[#\s]*", " ", text)  # lines that go on


def split(rest):
    """The arguments of a command, up to what is no more of it."""
    rest = re.split(r"`|\s#\s|\s{4,}|\s[|&;>]|;|\n", rest, maxsplit=1)[0]
    rest = re.sub(r'"?\$\{\w+\[@\]\}"?', "", rest)  # its script's own list
    rest = re.sub(r"\[(.*?)\]", r"\1", rest) if "[" in rest and "[:" not in rest else rest
    rest = re.sub(r'"?\$@"?', "", rest)
    rest = re.sub(r"\$\{?\w+\}?", "1", rest)
    return tuple(NAMES.get(word, word) for word in shlex.split(rest.rstrip(",.)")))


def commands():
    for path in TOLD:
        text = text_of(path)
        for found in COMMAND.finditer(text):
            if "PROGRAM" in found[0]:
                continue
            module = found["module"] or f"avs_jax.{found['program']}"
            rest = text[found.end() :]
            yield Told(str(path.relative_to(ROOT)), module, split(rest))


COMMANDS = list(dict.fromkeys(commands()))


class ParsedError(Exception):
    """A program's arguments were taken."""


def parse_train(arguments):
    """By `train`'s own parser, with flags of the same names: those of a process are set once."""
    own = flags.FlagValues()
    for flag in flags.FLAGS.get_flags_for_module("avs_jax.train"):
        if flag.name.partition(".")[0] != "config":
            own[flag.name] = copy.deepcopy(flag)
    config_flags.DEFINE_config_file("config", None, flag_values=own)
    command = ["train", *arguments]
    # ml_collections looks there for the fields, and loads the file as Python 2 did.
    with patch("sys.argv", command), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        avs_jax.train.parse_flags(command, own)


@pytest.fixture
def parse(monkeypatch):
    """`parse(module, arguments)`; raises where the module's program does not take them."""
    original = argparse.ArgumentParser.parse_args

    def stop_after(self, *arguments):
        original(self, *arguments)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after)

    def one(module, arguments):
        if module == "avs_jax.train":
            return parse_train(arguments)
        monkeypatch.setattr("sys.argv", [module, *arguments])
        with pytest.raises(ParsedError):
            importlib.import_module(module).main()

    return one


def test_commands_are_found():
    files = {told.file for told in COMMANDS}
    assert {
        "README.md",
        "launch/quickstart.sh",
        "launch/local.sh",
        "configs/avesformer.py",
    } <= files
    assert {told.module for told in COMMANDS} >= {
        module for module, _ in PROGRAMS.values() if module.count(".") == 1
    }
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("told", COMMANDS, ids=str)
def test_command_is_taken_by_its_program(told, parse):
    assert importlib.util.find_spec(told.module), f"no module {told.module}"
    if told.arguments and told.arguments != ("--help",) and told.module.startswith("avs_jax."):
        parse(told.module, told.arguments)
    for word, value in zip(told.arguments, told.arguments[1:], strict=False):
        if word == "--config" and value.startswith("configs/"):
            read_config(value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "configs/quickstart.py", "--workdirr", "x"],
        ["--config", "configs/quickstart.py", "--config.model.dimm=3"],
    ],
)
def test_flag_that_train_does_not_have_is_found(arguments):
    with pytest.raises(errors.InputError):
        parse_train(arguments)


def test_flag_that_evaluate_does_not_have_is_found(parse):
    with pytest.raises(SystemExit):
        parse("avs_jax.evaluate", ["--checkpoint", "WORKDIR", "--sed", "3"])


# --------------------------------------------------------------------------------------- the README

README = (ROOT / "README.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", README)  # spans within lines


def test_config_fields_that_the_readme_sets_exist():
    lines = README.splitlines()
    start = lines.index("| `--config.` | |")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1])
    fields = [span.partition("=")[0] for row in rows for span in re.findall(r"`([^`]+)`", row)]
    fields = [field for field in fields if "." in field or "_" in field or field.isidentifier()]
    fields += re.findall(r"--config\.([\w.]+)=", README)
    fields += [span.partition("=")[0] for span in CODE if re.match(r"data\.\w+=", span)]
    assert len(fields) > 15
    config = read_config("configs/avesformer.py:subset=ms3,backbone=resnet50")
    fields = [field for field in dict.fromkeys(fields) if field not in ("blocks", "frozen")]
    check_fields(config, fields)


def test_options_that_the_readme_names_exist():
    sources = "\n".join(
        path.read_text()
        for folder, kind in (("avs_jax", "*.py"), ("launch", "*.sh"), ("tests", "*.py"))
        for path in (ROOT / folder).rglob(kind)
        if path != Path(__file__)
    )
    options = {name for span in CODE for name in re.findall(r"(?:^|\s)--(\w[\w-]*)", span)}
    options -= {"config"}
    missing = [
        name
        for name in sorted(options)
        if not re.search(rf'["\s(|]--{name}\b|DEFINE_\w+\(\s*"{name}"|help', sources)
    ]
    assert len(options) > 10 and missing == []


def test_files_that_the_readme_names_exist():
    folders = "avs_jax|configs|launch|tests|findings"
    named = re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*\w", README)
    missing = [name for name in sorted(set(named)) if not (ROOT / name).exists()]
    assert len(named) > 20 and missing == []


def blocks():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_blocks_are_python():
    assert len(blocks()) >= 2
    for block in blocks():
        compile(block, "README.md", "exec")


def test_block_of_three_lines_calls_what_there_is(monkeypatch):
    (block,) = (block for block in blocks() if "avs_jax.load" in block)
    monkeypatch.setattr(avs_jax, "load", create_autospec(load, return_value=create_autospec(Model)))
    names = {"frames": np.zeros((2, 8, 8, 3), np.uint8), "waveform": np.zeros(16_000, np.float32)}
    exec(block, names | {"sample_rate": 16_000})
    avs_jax.load.assert_called_once_with("lite")


def test_block_that_runs_an_exported_file_runs_one(monkeypatch, tmp_path):
    (block,) = (block for block in blocks() if "export.deserialize" in block)
    monkeypatch.chdir(tmp_path)
    names = {"frames": np.full((1, 2, 4, 4, 3), 51, np.uint8)}
    names["waveform"] = np.zeros((1, 32_000), np.float32)
    weights = {"params/half": np.float32(0.5)}

    def segment(weights, frames, waveform):
        return weights["params/half"] * frames[..., :1] / 255.0 + waveform.max()

    program = jax.export.export(jax.jit(segment))(
        weights, names["frames"], names["waveform"]
    ).serialize()
    np.savez("FILE.npz", program=np.frombuffer(program, np.uint8), **weights)
    exec(block, names)
    np.testing.assert_allclose(names["probabilities"], np.full((1, 2, 4, 4, 1), 0.1), rtol=1e-6)
