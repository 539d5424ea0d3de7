"""What all tests share: eight CPU devices, checked shapes, quick variables; PyTorch, media."""

import importlib.util
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what most tests spend their time on: no optimisation.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
).strip()

from jaxtyping import install_import_hook

# Every annotated function of the package checks its shapes while tests run.
install_import_hook("avs_jax", "beartype.beartype")

import jax
import numpy as np
import pytest

from tests.buckets import bucket, no_bucket_client  # noqa: F401 (fixtures)

# Gigabytes that only conversion needs (extra `convert`): without them the rest is tested.
LACKS_TORCH = any(importlib.util.find_spec(name) is None for name in ("torch", "safetensors"))
# Real pictures, sounds and weights of other packages (launch/fetch_media.sh).
MEDIA = pathlib.Path(os.environ.get("AVS_JAX_MEDIA", "data/media"))
LACKS_MEDIA = not (MEDIA / "media.json").exists()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than ten seconds; run in CI all the same")
    config.addinivalue_line("markers", "needs_torch: takes the fixture `torch`: so marked by that")
    config.addinivalue_line("markers", "needs_media: takes the fixture `media`: so marked by that")


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(items):
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_torch")
            if LACKS_TORCH:
                item.add_marker(pytest.mark.skip(reason="needs PyTorch (extra `convert`)"))
        if "media" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_media")
            if LACKS_MEDIA:
                item.add_marker(pytest.mark.skip(reason="needs launch/fetch_media.sh"))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = sum("needs_torch" in getattr(report, "keywords", ()) for report in skipped)
    if LACKS_TORCH and left_out:
        terminalreporter.write_line(
            f"{left_out} tests left out for lack of PyTorch; to run them too: "
            'pip install -e ".[test,convert]"'
        )
    left_out = sum("needs_media" in getattr(report, "keywords", ()) for report in skipped)
    if LACKS_MEDIA and left_out:
        terminalreporter.write_line(
            f"{left_out} tests left out for lack of real media; to run them too: "
            "launch/fetch_media.sh, or AVS_JAX_MEDIA=DIR where it fetched before"
        )


@pytest.fixture(scope="session")
def torch():
    """PyTorch; a test that takes it is marked `needs_torch` and left out where it is missing."""
    return importlib.import_module("torch")


@pytest.fixture(scope="session")
def media():
    """The folder of real media; a test that takes it is marked `needs_media`, and so left out."""
    return MEDIA


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
