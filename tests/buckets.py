"""A bucket for tests: epath's gs:// over fsspec's memory, so that nothing needs a network.

What epath reads and writes goes there (logs, JSON, data sets). Orbax writes arrays through
TensorStore, which knows no such thing: tests of a whole run take an emulator, see
`test_whole_bucket`.
"""

import fsspec
import pytest
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem


class _Memory(MemoryFileSystem):
    """gs://bucket/x is /bucket/x here; like a bucket it has only folders that hold something."""

    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs:/"))

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass


class _Backend(backend._FileSystemSpecBackend):
    def fs(self, path):
        return _Memory()


@pytest.fixture
def bucket(monkeypatch):
    """The name of an empty bucket."""
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", _Backend())
    _Memory.store.clear()
    return "gs://bucket"


@pytest.fixture
def no_bucket_client(monkeypatch):
    """As where gcsfs and s3fs are not installed."""

    def missing(name, **_):
        raise ImportError(f"no client of {name}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield
    backend.fsspec_backend._get_filesystem.cache_clear()
