"""What all tests share: eight CPU devices, checked shapes, quick variables; PyTorch, ONNX, media,
a browser."""

import importlib.util
import os
import pathlib
import shutil
import socket

from tests import quick_xla

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_xla.flags(devices=8)}".strip()

from jaxtyping import install_import_hook

# Every annotated function of the package checks its shapes while tests run.
install_import_hook("avs_jax", "beartype.beartype")

import jax
import numpy as np
import pytest

from tests import joining
from tests.buckets import bucket, no_bucket_client  # noqa: F401 (fixtures)

# Gigabytes that only conversion needs (extra `convert`): without them the rest is tested.
LACKS_TORCH = any(importlib.util.find_spec(name) is None for name in ("torch", "safetensors"))
LACKS_ONNX = any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime"))
# Real pictures, sounds and weights of other packages (launch/fetch_media.sh).
MEDIA = pathlib.Path(os.environ.get("AVS_JAX_MEDIA", "data/media"))
LACKS_MEDIA = not (MEDIA / "media.json").exists()
# The page of `demo` (extra `demo`) is looked at in a browser of the system.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LACKS_BROWSER = CHROMIUM is None or any(
    importlib.util.find_spec(name) is None for name in ("gradio", "playwright")
)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than ten seconds; run in CI all the same")
    config.addinivalue_line("markers", "needs_torch: takes the fixture `torch`: so marked by that")
    config.addinivalue_line("markers", "needs_onnx: takes the fixture `onnx`: so marked by that")
    config.addinivalue_line("markers", "needs_media: takes the fixture `media`: so marked by that")
    config.addinivalue_line("markers", "needs_browser: takes the fixture `browser`, or one of its")


# With several processes (`-n 2 --dist loadfile`) the tests of a file share one. What takes longest
# starts first; whole published networks with gradients (`*_parity`) take 4.5 GB each.
LONG = (
    "test_train.py",
    "data/avsbench/test_mini_run.py",
    "models/test_catr_parity.py",
    "models/test_pcmanet_parity.py",
    "test_train_mishaps.py",
)


def put_first(items):
    """Orders the tests: those of LONG, then all others as they come."""
    here = pathlib.Path(__file__).parent

    def rank(item):
        name = item.path.relative_to(here).as_posix()
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=rank)


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(items):
    put_first(items)
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_torch")
            if LACKS_TORCH:
                item.add_marker(pytest.mark.skip(reason="needs PyTorch (extra `convert`)"))
        if "onnx" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_onnx")
            if LACKS_ONNX:
                item.add_marker(pytest.mark.skip(reason="needs ONNX (extra `onnx`)"))
        if "media" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_media")
            if LACKS_MEDIA:
                item.add_marker(pytest.mark.skip(reason="needs launch/fetch_media.sh"))
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_browser")
            if LACKS_BROWSER:
                item.add_marker(pytest.mark.skip(reason="needs Gradio, playwright and Chromium"))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = sum("needs_torch" in getattr(report, "keywords", ()) for report in skipped)
    if LACKS_TORCH and left_out:
        terminalreporter.write_line(
            f"{left_out} tests left out for lack of PyTorch; to run them too: "
            'pip install -e ".[test,convert]"'
        )
    left_out = sum("needs_onnx" in getattr(report, "keywords", ()) for report in skipped)
    if LACKS_ONNX and left_out:
        terminalreporter.write_line(
            f"{left_out} tests left out for lack of ONNX; to run them too: "
            'pip install -e ".[test,onnx]"'
        )
    left_out = sum("needs_media" in getattr(report, "keywords", ()) for report in skipped)
    if LACKS_MEDIA and left_out:
        terminalreporter.write_line(
            f"{left_out} tests left out for lack of real media; to run them too: "
            "launch/fetch_media.sh, or AVS_JAX_MEDIA=DIR where it fetched before"
        )
    left_out = sum("needs_browser" in getattr(report, "keywords", ()) for report in skipped)
    if LACKS_BROWSER and left_out:
        terminalreporter.write_line(
            f"{left_out} tests left out for lack of a browser; to run them too: "
            'pip install -e ".[test,demo,browser]", and Chromium (Debian: apt-get install chromium)'
        )


@pytest.fixture(scope="session")
def torch():
    """PyTorch; a test that takes it is marked `needs_torch` and left out where it is missing."""
    return importlib.import_module("torch")


@pytest.fixture(scope="session")
def onnx():
    """ONNX and its runtime; a test that takes it is marked `needs_onnx`, and so left out."""
    return importlib.import_module("onnx"), importlib.import_module("onnxruntime")


@pytest.fixture(scope="session")
def media():
    """The folder of real media; a test that takes it is marked `needs_media`, and so left out."""
    return MEDIA


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, driven by playwright; where one is missing the test is left out."""
    playwright = importlib.import_module("playwright.sync_api").sync_playwright().start()
    options = {"args": ["--no-sandbox"], "executable_path": CHROMIUM}  # root has no sandbox
    chromium = playwright.chromium.launch(**options)
    yield chromium
    chromium.close()
    playwright.stop()


@pytest.fixture
def address():
    """A free port on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start():
    """`start(*options)` -> a small program that may meet others, see `tests.joining`."""
    processes = []

    def one(*options, **environment):
        processes.append(joining.start(*options, **environment))
        return processes[-1]

    yield one
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def member(start, address):
    """`member(process_id, num_processes, *options)` -> one of several such programs."""

    def one(process_id, num_processes, *options, address=address):
        place = ["--coordinator", address, "--process_id", process_id]
        return start(*place, "--num_processes", num_processes, *options)

    return one


@pytest.fixture(scope="session")
def fill_variables():
    """`fill(module, *inputs, seed=0, **call)` -> variables of sane scale, without compiling init.

    Kernels are normal with variance 1 / fan-in, scales and variances near 1, the rest small.
    """

    def fill(module, *inputs, seed=0, **call):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **call))
        rng = np.random.default_rng(seed)

        def value(path, leaf):
            name = path[-1].key
            if name in ("scale", "var"):
                array = rng.uniform(0.8, 1.2, leaf.shape)
            elif len(leaf.shape) > 1:
                fan_in = np.prod(leaf.shape[:-1])
                array = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
            else:
                array = rng.uniform(-0.1, 0.1, leaf.shape)
            return np.asarray(array, leaf.dtype)

        return jax.tree_util.tree_map_with_path(value, shapes)

    return fill
