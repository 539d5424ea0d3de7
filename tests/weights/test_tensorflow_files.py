"""TensorFlow's checkpoints, as TensorFlow writes them, read without it."""

import struct

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.weights.tensorflow_files import crc32c, read_bundle, read_table

PREFIX, SUFFIX = "layer-1/layer/layer_with_weights-", "/.ATTRIBUTES/VARIABLE_VALUE"
TYPES = {"<f4": 1, "<f8": 2, "<i4": 3, "<i8": 9, "<f2": 19}


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def plain_crc32c(data):
    """Bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries):
    """Sorted (key, value): prefixes are shared, one restart point, no compression."""
    out, last = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b),
            min(len(key), len(last)),
        )
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out, last = out + key[shared:] + value, key
    return out + struct.pack("<II", 0, 1)


def write_bundle(folder, arrays, per_block=2):
    """{name: array} -> variables.index and variables.data-00000-of-00001."""
    data, entries = b"", [(b"", field(1, 1))]  # the header: one part
    for name, array in sorted(arrays.items()):
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        entry = field(1, TYPES[array.dtype.str]) + field(2, shape)
        entry += field(4, len(data)) + field(5, array.nbytes) + varint(6 << 3 | 5)
        entry += struct.pack("<I", masked(plain_crc32c(array.tobytes())))
        entries.append((f"{PREFIX}{name}{SUFFIX}".encode(), entry))
        data += array.tobytes()
    entries.append((b"zz_graph", field(1, 7)))  # text
    table, index = b"", []
    for i in range(0, len(entries), per_block):
        part = block(entries[i : i + per_block])
        last = entries[i : i + per_block][-1][0]
        index.append((last, varint(len(table)) + varint(len(part))))
        table += part + bytes(5)  # kind and checksum
    handles = b""
    for part in (block([]), block(index)):
        handles += varint(len(table)) + varint(len(part))
        table += part + bytes(5)
    table += handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    folder.mkdir(parents=True)
    (folder / "variables.index").write_bytes(table)
    (folder / "variables.data-00000-of-00001").write_bytes(data)
    return folder


def arrays():
    rng = np.random.default_rng(0)
    return {
        "0/kernel": rng.normal(size=(3, 3, 1, 4)).astype("<f4"),
        "1/beta": rng.normal(size=4).astype("<f8"),
        "10/kernel": rng.normal(size=(1, 1, 200, 3)).astype("<f2"),
        "10/count": np.array(7, "<i8"),
    }


@pytest.mark.parametrize("given", [".", "variables"])
def test_arrays_come_back_floats_as_float32(tmp_path, given):
    write_bundle(tmp_path / "variables", arrays())
    read = read_bundle(tmp_path / given)
    assert set(read) == {f"layer_with_weights-{name}" for name in arrays()}
    for name, array in arrays().items():
        found = read[f"layer_with_weights-{name}"]
        wanted = np.float32 if array.dtype.kind == "f" else array.dtype
        assert found.dtype == wanted
        np.testing.assert_array_equal(found, array.astype(wanted))


def test_slots_of_an_optimiser_are_left_out(tmp_path):
    slots = {f"0/kernel/.OPTIMIZER_SLOT/adam/m{SUFFIX}": np.zeros(3, "<f4")}
    write_bundle(tmp_path / "variables", arrays() | slots)
    assert len(read_bundle(tmp_path)) == len(arrays())


def test_folder_without_a_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no TensorFlow checkpoint under"):
        read_bundle(tmp_path)


def test_missing_data_file_is_named(tmp_path):
    write_bundle(tmp_path / "variables", arrays())
    (tmp_path / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(errors.NotFoundError, match=r"data-00000-of-00001 beside variables\.index"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("file", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("keep", [0, 60, -60])
def test_file_that_was_cut_off_is_told(tmp_path, file, keep):
    path = write_bundle(tmp_path / "variables", arrays()) / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.BadValueError, match=r"cannot be read \(.*fetch it again"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("length", [0, 9, 1023, 1024, 5000])
def test_checksum_is_castagnolis(length):
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == plain_crc32c(data)


def test_other_bytes_are_told(tmp_path):
    path = write_bundle(tmp_path / "variables", arrays()) / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.BadValueError, match=r"0/kernel.* has other bytes than were saved"):
        read_bundle(tmp_path)


def test_compressed_block_is_refused(tmp_path):
    path = write_bundle(tmp_path / "variables", arrays()) / "variables.index"
    end = struct.pack("<II", 0, 1)  # of each block, before its kind
    with pytest.raises(ValueError, match="packed"):
        read_table(path.read_bytes().replace(end + b"\0", end + b"\1"))
