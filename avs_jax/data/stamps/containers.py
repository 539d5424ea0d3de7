"""Files out of Debian packages, wheels and Qt resources, without dpkg, pip or Qt.

read_deb    .deb: an `ar` archive around data.tar.xz                     (deb(5))
read_wheel  .whl: a zip archive
read_rcc    .rcc: Qt's resource container, as rcc --binary writes it     (qtbase, qresource.cpp)
"""

import io
import lzma
import pathlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from avs_jax import errors

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60  # bytes: name 16, date 12, owner 6, group 6, mode 8, size 10, end 2
_FOLDER, _ZLIB, _ZSTD = 2, 1, 4  # flags of a node of an .rcc tree


def read_deb(path: pathlib.Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """{"usr/share/...": bytes} of the files of a Debian package that are `wanted` by name.

    Raises:
      BadValueError: not a Debian package, cut off, or packed in another way than by xz or gzip.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
                raise errors.BadValueError(f"{path} is no Debian package; fetch it again.")
            while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
                name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
                if name.startswith("data.tar"):
                    # One pass through a stream: the whole of it would not fit small machines.
                    with (
                        lzma.open(file) if name.endswith(".xz") else file as unpacked,
                        tarfile.open(fileobj=unpacked, mode="r|*") as archive,
                    ):
                        return {
                            member.name.removeprefix("./"): archive.extractfile(member).read()
                            for member in archive
                            if member.isfile() and wanted(member.name.removeprefix("./"))
                        }
                file.seek(size + size % 2, io.SEEK_CUR)
    except (lzma.LZMAError, tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, errors.InputError):
            raise
        raise errors.BadValueError(
            f"{path} cannot be unpacked ({error}); fetch it again."
        ) from error
    raise errors.BadValueError(f"{path} has no data.tar; fetch it again.")


def read_wheel(path: pathlib.Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """{name: bytes} of the files of a wheel that are `wanted`; raises BadValueError as read_deb."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if wanted(name)}
    except (zipfile.BadZipFile, OSError, zlib.error) as error:
        raise errors.BadValueError(
            f"{path} cannot be unpacked ({error}); fetch it again."
        ) from error


def read_rcc(content: bytes, name: str = "the .rcc file") -> dict[str, bytes]:
    """{"folder/file": bytes} of every file in a Qt resource container.

    Header: "qres", then big-endian u32 of version and the places of tree, data and names. A node of
    the tree has 14 bytes, 22 from version 2 on: place of its name u32, flags u16, then of a folder
    the number of children and the first of them, u32 both; of a file country u16, language u16,
    place of its data u32. A name is its length u16, a hash u32 and UTF-16; data are their length
    u32 and the bytes, which zlib packed behind 4 bytes of their own where flag 1 is set.

    Raises:
      BadValueError: no such container, a damaged one, or one packed by zstd.
    """
    if content[:4] != b"qres":
        raise errors.BadValueError(f"{name} is not a Qt resource container.")
    if len(content) < 20:
        raise errors.BadValueError(f"{name} is damaged (it ends in its header); fetch it again.")
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    node_size = 14 if version < 2 else 22
    found: dict[str, bytes] = {}

    def read_name(place: int) -> str:
        (length,) = struct.unpack_from(">H", content, names + place)
        start = names + place + 6
        return content[start : start + 2 * length].decode("utf-16-be")

    def walk(index: int, prefix: str, depth: int) -> None:
        place = tree + node_size * index
        name_place, flags = struct.unpack_from(">IH", content, place)
        path = prefix + (read_name(name_place) if index else "")  # the root has no name
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", content, place + 6)
            if depth > 64 or first + count > len(content) // node_size:
                raise ValueError("a tree that does not end")
            for child in range(first, first + count):
                walk(child, f"{path}/" if path else "", depth + 1)
            return
        if flags & _ZSTD:
            raise errors.BadValueError(f"{name} packs {path} by zstd, which is not read here.")
        (data_place,) = struct.unpack_from(">I", content, place + 10)
        (length,) = struct.unpack_from(">I", content, data + data_place)
        start = data + data_place + 4
        if start + length > len(content):
            raise ValueError(f"{path} ends behind the file")
        body = content[start : start + length]
        found[path] = zlib.decompress(body[4:]) if flags & _ZLIB else body

    try:
        walk(0, "", 0)
    except errors.InputError:
        raise
    except (struct.error, ValueError, zlib.error) as error:
        raise errors.BadValueError(f"{name} is damaged ({error}); fetch it again.") from error
    return found
