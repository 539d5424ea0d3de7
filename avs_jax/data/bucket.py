"""A built data set in a bucket: its shards are copied here once, for ArrayRecord reads local files.

They come to ~/.cache/avs_jax/data/SCHEME/BUCKET/..., or to the folder that AVS_JAX_DATA_CACHE names
(one with room: AVSS takes 25 GB). Each host copies the splits that it opens.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterable

from etils import epath

_AT_ONCE = 8  # files: enough to fill a line, few enough to keep in memory


def local_folder(folder: epath.Path) -> pathlib.Path:
    """Where the copy of a folder in a bucket lies."""
    cache = os.environ.get("AVS_JAX_DATA_CACHE")
    root = pathlib.Path(cache) if cache else pathlib.Path.home() / ".cache" / "avs_jax" / "data"
    return root.joinpath(*os.fspath(folder).replace("://", "/").split("/"))


def copy_here(folder: epath.Path, names: Iterable[str]) -> pathlib.Path:
    """Copies what is not here yet.

    Args:
      folder: of a built data set. names: of files in it.

    Returns:
      The local folder. A file is copied again if its size in the bucket differs.

    Raises:
      FileNotFoundError: one is not there.
    """
    here = local_folder(folder)
    here.mkdir(parents=True, exist_ok=True)

    def copy(name: str) -> None:
        source, target = folder / name, here / name
        if target.exists() and target.stat().st_size == source.stat().length:
            return
        temporary = target.with_name(f"{name}.{os.getpid()}.tmp")
        temporary.write_bytes(source.read_bytes())
        os.replace(temporary, target)  # nobody sees half a file

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, names))
    return here
