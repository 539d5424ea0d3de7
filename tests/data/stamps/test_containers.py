"""Packages read without their tools: what the formats say, and what is damaged."""

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib

import pytest

from avs_jax import errors
from avs_jax.data.stamps.containers import read_deb, read_rcc, read_wheel

FILES = {"usr/share/a/b.txt": b"b" * 1000, "usr/share/a/c.bin": bytes(range(256))}


def write_deb(path, files, compress=lzma.compress, name=b"data.tar.xz"):
    """A Debian package of `files`, as dpkg-deb --build writes it."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f"./{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    members = {
        b"debian-binary": b"2.0\n",
        b"control.tar.xz": b"odd",
        name: compress(tar.getvalue()),
    }
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for member, content in members.items():
            header = member.ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"100644".ljust(8)
            out.write(header + str(len(content)).encode().ljust(10) + b"`\n" + content)
            out.write(b"\n" * (len(content) % 2))
    return path


def make_rcc(files, version=3, packed=()):
    """A Qt resource container of {"folder/file": bytes}; a folder's name may have slashes."""
    folders = sorted({name.rpartition("/")[0] for name in files})
    names, data, place = b"", b"", {}
    for part in [*folders, *(name.rpartition("/")[2] for name in files)]:
        place[part] = len(names)
        names += struct.pack(">HI", len(part), 0) + part.encode("utf-16-be")

    def node(name, flags, *rest):
        body = struct.pack(">IH", place.get(name, 0), flags) + rest[0]
        return body + bytes(8 if version > 1 else 0)

    nodes = [node("", 2, struct.pack(">II", len(folders), 1))]
    first = 1 + len(folders)
    for folder in folders:
        inside = [name for name in files if name.rpartition("/")[0] == folder]
        nodes.append(node(folder, 2, struct.pack(">II", len(inside), first)))
        first += len(inside)
    for folder in folders:
        for name in (name for name in files if name.rpartition("/")[0] == folder):
            content = files[name]
            if name in packed:
                content = struct.pack(">I", len(content)) + zlib.compress(content)
            at = struct.pack(">HHI", 0, 1, len(data))
            nodes.append(node(name.rpartition("/")[2], 1 if name in packed else 0, at))
            data += struct.pack(">I", len(content)) + content
    header, tree = 24, b"".join(nodes)
    starts = (header, header + len(tree), header + len(tree) + len(data))
    return b"qres" + struct.pack(">4I", version, *starts) + bytes(4) + tree + data + names


def test_deb_gives_the_wanted_files(tmp_path):
    path = write_deb(tmp_path / "x.deb", FILES)
    assert read_deb(path, lambda name: name.endswith(".txt")) == {
        "usr/share/a/b.txt": FILES["usr/share/a/b.txt"]
    }


def test_deb_packed_by_gzip(tmp_path):
    path = write_deb(tmp_path / "x.deb", FILES, gzip.compress, b"data.tar.gz")
    assert read_deb(path, lambda name: True) == FILES


@pytest.mark.parametrize("keep", [5, 100, 300])
def test_deb_that_was_cut_off_is_told(tmp_path, keep):
    path = write_deb(tmp_path / "x.deb", FILES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.BadValueError, match=r"x\.deb .*fetch it again"):
        read_deb(path, lambda name: True)


def test_wheel_gives_the_wanted_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("a/b.txt", "b")
        archive.writestr("a/c.txt", "c")
    assert read_wheel(tmp_path / "x.whl", lambda name: "b" in name) == {"a/b.txt": b"b"}


def test_wheel_that_is_none_is_told(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"no zip")
    with pytest.raises(errors.BadValueError, match=r"x\.whl .*fetch it again"):
        read_wheel(tmp_path / "x.whl", lambda name: True)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_rcc_gives_every_file_packed_or_not(version):
    files = {"a/x.txt": b"x" * 100, "a/y.txt": b"", "b/ö.svg": b"<svg/>" * 50}
    assert read_rcc(make_rcc(files, version, packed={"b/ö.svg"})) == files


@pytest.mark.parametrize("keep", [0, 10, 40, 120])
def test_rcc_that_was_cut_off_is_told(keep):
    content = make_rcc({"a/x.txt": b"x" * 100})
    with pytest.raises(errors.BadValueError, match=r"x\.rcc is"):
        read_rcc(content[:keep], "x.rcc")
