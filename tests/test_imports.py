"""How the package is put together: which file may import which, and what stands at the door."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import avs_jax
from avs_jax.__main__ import PROGRAMS

ROOT = Path(avs_jax.__file__).parent

# A room may import from those before it, and within itself.
GROUND_FILES = ("devices", "hosts", "peers", "config", "errors", "paths", "types")
GROUND = tuple(f"avs_jax.{name}" for name in GROUND_FILES)
ROOMS = (
    "layers",
    "media",
    "backbones",
    "data",
    "models",
    "scoring",
    "weights",
    "prediction",
    "reporting",
    "exporting",
    "training",
    "benchmarking",
)

# Imports inside functions, and why they are not at the head of the file.
LAZY = {
    ("avs_jax.data", "tensorflow_datasets"): "0.3 s that a bare import need not pay",
    ("avs_jax.data", "array_record.python"): "with tensorflow_datasets, which brings it",
    ("avs_jax.data", "avs_jax.data.decoding"): "with tensorflow_datasets, which it needs",
    ("avs_jax.data.sounding_shapes.build", "avs_jax.data.sounding_shapes.preview"): "PIL and cv2, "
    "which building does not need",
    ("avs_jax.scoring.calibration", "matplotlib.backends.backend_agg"): "0.5 s, for one picture",
    ("avs_jax.scoring.calibration", "matplotlib.figure"): "0.5 s, for one picture",
    ("avs_jax.reporting.curves", "matplotlib.backends.backend_agg"): "0.5 s, for one picture",
    ("avs_jax.reporting.curves", "matplotlib.figure"): "0.5 s, for one picture",
    ("avs_jax.reporting.embedding", "matplotlib"): "0.5 s, for --report alone",
    ("avs_jax.reporting.embedding", "matplotlib.backends.backend_svg"): "0.5 s, for --report alone",
    ("avs_jax.reporting.embedding", "matplotlib.figure"): "0.5 s, for --report alone",
    (
        "avs_jax.media.audio",
        "soxr",
    ): "running a model needs jax and flax alone; this resamples files",
    ("avs_jax.demo", "gradio"): "of the extra `demo`; 3 s",
    ("avs_jax.demo", "starlette.middleware"): "Gradio brings it",
    ("avs_jax.export", "avs_jax.exporting.clips"): "decodes data, for --int8 alone",
    ("avs_jax.export", "avs_jax.exporting.int8"): "needs the extra `onnx`",
    ("avs_jax.export", "avs_jax.exporting.onnx_file"): "needs the extra `onnx`",
    ("avs_jax.export", "avs_jax.exporting.runtimes"): "needs the extra `onnx`",
    ("avs_jax.exporting.runtimes", "openvino"): "180 MB, for a comparison",
    ("avs_jax.benchmarking.timing", "resource"): "does not exist on Windows",
    ("avs_jax.benchmark", "avs_jax.benchmarking.plan"): "what runs a model needs no training",
    ("avs_jax.benchmark", "avs_jax.benchmarking.scaling"): "what runs a model needs no training",
    ("avs_jax.benchmarking.plan", "jax.experimental"): "reads what libtpu is told",
    ("avs_jax.benchmark", "avs_jax.benchmarking.steps"): "what runs a model needs no training",
    ("avs_jax.benchmark", "avs_jax.training.sharding"): "what runs a model needs no training",
}


class Import(NamedTuple):
    importer: str
    imported: str
    lazy: bool  # inside a function


def module_name(path):
    parts = ("avs_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(name, path):
    def visit(node, lazy):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide which room is meant"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [module if module in FILES else node.module for module in full]
        for imported in found:
            yield Import(name, imported, lazy)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            # A program's `if __name__ == "__main__"` runs after all imports: it may name itself.
            guard = isinstance(child, ast.If) and "__name__" in ast.unparse(child.test)
            if not guard:
                yield from visit(child, lazy or inside)

    return list(visit(ast.parse(path.read_text()), lazy=False))


@functools.cache
def all_imports():
    return [found for name, path in FILES.items() for found in imports_of(name, path)]


def ours():
    return [found for found in all_imports() if found.imported in FILES]


def room(module):
    parts = module.split(".")
    if module in ("avs_jax", *GROUND):
        return "ground"
    return parts[1] if parts[1] in ROOMS else "programs"


def test_every_file_at_the_door_is_a_program_or_ground():
    door = {name for name in FILES if room(name) == "programs"} - {"avs_jax.__main__"}
    assert door <= {module for module, _ in PROGRAMS.values()}


def test_rooms_import_one_way():
    order = ["ground", *ROOMS, "programs"]
    wrong = [
        f"{found.importer} -> {found.imported}"
        for found in ours()
        if order.index(room(found.importer)) < order.index(room(found.imported))
    ]
    assert wrong == []


def test_no_circle():
    graph = {name: set() for name in FILES}
    for found in ours():
        if found.importer != found.imported:
            graph[found.importer].add(found.imported)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names it


def test_imports_inside_functions_are_listed_with_their_reason():
    lazy = {(found.importer, found.imported) for found in all_imports() if found.lazy}
    assert lazy == set(LAZY)


def test_no_program_is_imported():
    programs = {module for module, _ in PROGRAMS.values()}
    # The loader's benchmark measures what the builder has built.
    known = {("avs_jax.data.benchmark", "avs_jax.data.avsbench.build")}
    found = {(x.importer, x.imported) for x in ours() if x.imported in programs}
    assert found == known


def reach(start):
    """Every module of ours that importing `start` brings along."""
    graph = {}
    for found in (x for x in ours() if not x.lazy):
        graph.setdefault(found.importer, set()).add(found.imported)
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += graph.get(module, ())
    return seen


@pytest.mark.parametrize("program", ["predict", "demo", "evaluate", "benchmark"])
def test_what_runs_a_model_needs_nothing_of_training(program):
    found = {module for module in reach(f"avs_jax.{program}") if room(module) == "training"}
    assert found == set()


@pytest.mark.parametrize("module", sorted(FILES))
def test_files_and_functions_are_short_enough_to_read(module):
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= 500
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and node.name not in ("main", "train", "run")  # programs read top to bottom
        and node.end_lineno - node.lineno + 1 > 80
    ]
    assert long == []


def test_no_file_has_a_name_that_says_nothing():
    nothing = {"utils", "util", "misc", "helpers", "common", "tools"}
    assert not nothing & {name.split(".")[-1] for name in FILES}


def test_files_lie_in_the_tests_as_in_the_package():
    tests = Path(__file__).parent
    missing = []
    for path in tests.rglob("test_*.py"):
        stem = path.stem.removeprefix("test_")
        folder = path.parent.relative_to(tests)
        mirrored = [ROOT / folder / f"{stem}.py", ROOT / folder / f"__{stem}__.py"]
        # Of a file or a room, or a part of a file's tests: test_catr_parity.py of catr.py.
        parts = stem.split("_")
        mirrored += [ROOT / folder / f"{'_'.join(parts[:i])}.py" for i in range(1, len(parts))]
        if not any(place.exists() for place in mirrored):
            missing.append(str(path.relative_to(tests)))
    of_several_files = {
        "test_bucket_run.py",
        "test_configs.py",
        "test_conftest.py",
        "test_imports.py",
        "test_old_files.py",  # what earlier versions left on disk
        "test_readme.py",
        "test_wheel.py",
        "faults/test_torture.py",
        "gpu/test_check.py",
        "data/avsbench/test_mini_run.py",  # AVSBench from folders to figures
        "launch/test_clusters.py",
        "launch/test_environment.py",
        "media/test_fuzz.py",
        "models/test_losses.py",
        "models/test_see_and_decide.py",
        "parity/test_time_published.py",
        "weights/zoo/test_lite.py",  # the weights that are shipped
    }
    assert set(missing) == of_several_files


def test_import_of_the_package_is_light():
    code = "import sys, avs_jax; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
