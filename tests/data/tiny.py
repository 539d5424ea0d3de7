"""A tiny built data set, for the tests of everything that reads one."""

import os

from avs_jax.data.sounding_shapes import build


def build_tiny(
    data_dir: str | os.PathLike,
    subset: str = "ms3",
    size: int = 32,
    clips: tuple[int, int, int] = (8, 4, 4),
) -> str:
    """Builds `sounding_shapes` under `data_dir` (< 1 s) and returns `data_dir` for `open_split`."""
    build.build(data_dir, subset, size=size, clips=clips)
    return os.fspath(data_dir)
