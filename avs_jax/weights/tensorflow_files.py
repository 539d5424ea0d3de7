"""TensorFlow's checkpoints -> numpy arrays, without TensorFlow.

A checkpoint ("tensor bundle", tensorflow/core/util/tensor_bundle) is PREFIX.index, a table in
LevelDB's format of what there is, and PREFIX.data-00000-of-00001 with the bytes, little-endian. The
table's blocks hold sorted keys that share prefixes; its last 48 bytes say where the list of blocks
is. A value is a protocol buffer: type, shape, place, size, checksum.
"""

import struct
from collections.abc import Iterator

import numpy as np
from etils import epath

from avs_jax import errors

_MAGIC = 0xDB4775248B80FB57  # the last eight bytes of a LevelDB table
_FOOTER = 48
# DataType of tensorflow/core/framework/types.proto; text and others are left out
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 10: "?", 19: "<f2"}
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


_LANES = 1024  # parts of an array whose checksums are worked out side by side


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_CRC_TABLE = _crc_table()


def _apply_bits(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A linear map of 32 bits, given what it makes of each bit alone."""
    out = np.zeros_like(values)
    for i, column in enumerate(columns):
        out ^= np.where((values >> np.uint32(i)) & 1, column, np.uint32(0))
    return out


def crc32c(data: bytes) -> int:
    """The checksum (Castagnoli's) that TensorFlow keeps of each array.

    It is linear: equal parts are summed side by side, then joined two by two, the earlier one moved
    by as many zeros as the later one is long.
    """
    content = np.frombuffer(data, np.uint8)
    length = len(content) // _LANES
    parts = content[: _LANES * length].reshape(_LANES, length)
    crc = np.zeros(_LANES, np.uint32)
    crc[0] = 0xFFFFFFFF
    for column in parts.T:
        crc = _CRC_TABLE[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    byte = _CRC_TABLE[bits & 0xFF] ^ (bits >> np.uint32(8))  # what one zero makes of each bit
    move, rest = bits, length
    while rest:
        move = _apply_bits(byte, move) if rest & 1 else move
        byte, rest = _apply_bits(byte, byte), rest >> 1
    while len(crc) > 1:
        crc, move = _apply_bits(move, crc[::2]) ^ crc[1::2], _apply_bits(move, move)
    last = int(crc[0])
    for byte in content[_LANES * length :].tolist():
        last = int(_CRC_TABLE[(last ^ byte) & 0xFF]) ^ (last >> 8)
    return last ^ 0xFFFFFFFF


def _unmask(stored: int) -> int:
    """TensorFlow turns and shifts the checksums that it stores."""
    turned = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer -> (value, where it ends)."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _read_message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: (number, integer or bytes)."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind == 2:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        else:
            raise ValueError(f"a field of kind {kind}")
        yield tag >> 3, value


def _read_block(data: bytes, at: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block of a LevelDB table."""
    if data[at + size] != 0:
        raise ValueError("a packed block")
    block = data[at : at + size]
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end, at, key = size - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = _read_varint(block, at)
        added, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        key = key[:shared] + block[at : at + added]
        at += added
        yield key, block[at : at + length]
        at += length


def _read_handle(data: bytes, at: int = 0) -> tuple[int, int, int]:
    """(place, size) of a block, and where the handle ends."""
    place, at = _read_varint(data, at)
    size, at = _read_varint(data, at)
    return place, size, at


def read_table(data: bytes) -> dict[str, bytes]:
    """A LevelDB table of uncompressed blocks -> {key: value}; raises ValueError or IndexError."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("no table")
    footer = data[-_FOOTER:]
    _, _, after = _read_handle(footer)  # of the meta-index
    place, size, _ = _read_handle(footer, after)
    table = {}
    for _, handle in _read_block(data, place, size):
        place, size, _ = _read_handle(handle)
        table |= {key.decode(): value for key, value in _read_block(data, place, size)}
    return table


def _read_entry(message: bytes) -> tuple[str | None, tuple[int, ...], int, int, int]:
    """BundleEntryProto -> (type, shape, place, size, checksum); the type of what is no number is
    None."""
    fields = dict(_read_message(message))
    shape = []
    for number, value in _read_message(fields.get(2, b"")):
        if number == 2:  # TensorShapeProto.dim
            shape.append(dict(_read_message(value)).get(1, 0))
    dtype, checksum = _TYPES.get(fields.get(1)), _unmask(fields.get(6, 0))
    return dtype, tuple(shape), fields.get(4, 0), fields.get(5, 0), checksum


def find_data(path: epath.PathLike) -> epath.Path:
    """The file with the bytes of a SavedModel's folder or of its `variables`.

    Raises:
      NotFoundError: no such folder, or no checkpoint in it.
    """
    path = epath.Path(path).expanduser()
    folders = [path, path / "variables"] if path.is_dir() else [path.parent]
    found = [file for folder in folders for file in sorted(folder.glob("*.index"))]
    if not found:
        raise errors.NotFoundError(
            f"no TensorFlow checkpoint under {path}: expected variables/variables.index and "
            "variables/variables.data-00000-of-00001 of a SavedModel."
        )
    data = found[0].with_suffix(".data-00000-of-00001")
    if not data.exists():
        raise errors.NotFoundError(f"no {data} beside {found[0].name}; a checkpoint has both.")
    return data


def read_bundle(path: epath.PathLike) -> dict[str, np.ndarray]:
    """A SavedModel's folder or its `variables` -> {name: array}, floats as float32.

    Names are a Keras model's, without what they all begin or end with, e.g.
    `layer_with_weights-0/kernel`; text, counters and slots of an optimiser are left out.

    Raises:
      NotFoundError: no such folder, or no checkpoint in it.
      BadValueError: damaged, cut off, in several parts, or packed.
    """
    data = find_data(path)
    index = data.with_suffix(".index")
    try:
        table, content = read_table(index.read_bytes()), data.read_bytes()
        arrays = {}
        for key, message in table.items():
            if not key.endswith(_SUFFIX) or "/.OPTIMIZER_SLOT/" in key:
                continue
            dtype, shape, place, size, checksum = _read_entry(message)
            if dtype is None or "layer_with_weights-" not in key:
                continue
            if size != np.dtype(dtype).itemsize * int(np.prod(shape)) or place + size > len(
                content
            ):
                raise ValueError(f"{key} ends behind the file")
            if crc32c(content[place : place + size]) != checksum:
                raise ValueError(f"{key} has other bytes than were saved")
            array = np.frombuffer(content, dtype, offset=place, count=int(np.prod(shape)))
            is_float = array.dtype.kind == "f"
            name = key[key.index("layer_with_weights-") :].removesuffix(_SUFFIX)
            arrays[name] = array.reshape(shape).astype(np.float32 if is_float else array.dtype)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise errors.BadValueError(
            f"the TensorFlow checkpoint {index} cannot be read ({error}); fetch it again."
        ) from error
    if not arrays:
        raise errors.BadValueError(f"{index} holds no layers of a Keras model.")
    return arrays
