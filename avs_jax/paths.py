"""Files and folders, here or in a bucket: gs:// of Google's storage, s3:// of Amazon's.

Paths are of `etils.epath`, which reads and writes buckets by fsspec: gs:// needs the package gcsfs,
s3:// the package s3fs. Objects are written whole; there is no appending to one.
"""

import os

from etils import epath

from avs_jax import errors

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # what epath needs for a scheme


def in_bucket(path: os.PathLike | str) -> bool:
    """Whether a path names an object store."""
    return "://" in os.fspath(path)


def absolute(path: os.PathLike | str) -> epath.Path:
    """The absolute path, without links where it is a local one.

    epath's own `resolve` takes gs://bucket for a folder of the working directory.

    Raises:
      BadValueError: a scheme that is not known, or whose package is not installed.
    """
    text = os.fspath(path)
    if not in_bucket(text):
        return epath.Path(text).expanduser().resolve()
    scheme = text.partition("://")[0]
    if scheme not in PACKAGES:
        raise errors.BadValueError(
            f"{text}: unknown kind of storage {scheme}://; known: gs://, s3://, and local folders."
        )
    found = epath.Path(text)
    try:
        found.is_dir()
    except ImportError as error:
        package = PACKAGES[scheme]
        raise errors.BadValueError(
            f"{text}: {scheme}:// needs the package {package} ({error}); pip install {package}"
        ) from error
    except Exception as error:  # whatever the store's client raises: no network, no rights
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.BadValueError(f"{text} cannot be reached ({reason}).") from error
    return found
