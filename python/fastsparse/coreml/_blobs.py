"""Core ML's weight files, `weight.bin`: blobs one after the other, each with its metadata before it.

    header, 64 bytes          u32 number of blobs, u32 version 2, zeros
    for each blob, from the next multiple of 64:
        metadata, 64 bytes    u32 0xDEADBEEF, u32 dtype, u64 bytes, u64 offset of the data, u64 padding bits, zeros
        data

All is little-endian. A program refers to a blob by the offset of its metadata; the first is at 64. Elements of fewer
than eight bits lie LSB-first without gaps, and the padding is what the last byte has left. In front of whole bytes the
words after the offset mean nothing: coremltools 7 left them uninitialised.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.masks import Bitmask, flat_bits

__all__ = ["Blob", "read_blobs", "write_blobs"]

_ALIGNMENT = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")

_WHOLE: dict[int, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in {
        1: np.float16,
        2: np.float32,
        3: np.uint8,
        4: np.int8,
        5: ml_dtypes.bfloat16,
        6: np.int16,
        7: np.uint16,
        14: np.int32,
        15: np.uint32,
        16: ml_dtypes.float8_e4m3fn,
        17: ml_dtypes.float8_e5m2,
    }.items()
}
_PARTS = {8: ("int4", 4), 9: ("uint1", 1), 10: ("uint2", 2), 11: ("uint4", 4), 12: ("uint3", 3), 13: ("uint6", 6)}
"""Types of fewer than eight bits."""
_CODES = {str(kind): code for code, kind in _WHOLE.items()} | {name: code for code, (name, _) in _PARTS.items()}


@dataclass(frozen=True, eq=False)
class Blob:
    """A blob of a weight file.

    Attributes
    ----------
    dtype : str
        NumPy's name of the dtype, or int4, uint1, uint2, uint3, uint4 or uint6.
    size : int
        Number of elements. A blob has no shape: that is the program's.
    data : ndarray of uint8
        Its bytes, a read-only view of the file.
    """

    dtype: str
    size: int
    data: NDArray[np.uint8]

    def array(self) -> NDArray[Any]:
        """The elements, ``[size]``: a view where they are whole bytes, int8 or uint8 for smaller ones."""
        code = _CODES[self.dtype]
        if code in _WHOLE:
            return self.data.view(_WHOLE[code])
        width = _PARTS[code][1]
        bits = np.unpackbits(self.data, count=self.size * width, bitorder="little").reshape(self.size, width)
        values = np.packbits(bits, axis=1, bitorder="little").reshape(-1)
        return values if self.dtype != "int4" else (values.view(np.int8) ^ np.int8(8)) - np.int8(8)


def read_blobs(path: str | os.PathLike[str]) -> dict[int, Blob]:
    """The blobs of a weight file, by the offset that a program knows them by.

    Parameters
    ----------
    path : path-like
        ``weight.bin`` of a model package.

    Returns
    -------
    dict
        From offsets to blobs, in the order of the file. Their data are views of a memory map.

    Raises
    ------
    FormatError
        If the file is not valid.
    OSError
        If it cannot be read.
    """
    name = os.fspath(path)
    if os.path.getsize(path) < _HEADER.size:
        raise FormatError(f"{name}: shorter than the header of a weight file")
    content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    count, version = _HEADER.unpack_from(content.data)
    if version != _VERSION:
        raise FormatError(f"{name}: version {version} is unknown; this one reads {_VERSION}")
    blobs: dict[int, Blob] = {}
    end = _HEADER.size
    for _ in range(count):
        offset = _aligned(end)
        if offset + _METADATA.size > content.size:
            raise FormatError(f"{name}: {count} blobs are announced, the file ends after {len(blobs)}")
        try:
            blobs[offset], end = _read(content, offset)
        except FormatError as error:
            raise FormatError(f"{name}: blob at {offset}: {error}") from None
    if _aligned(end) < content.size:
        raise FormatError(f"{name}: {content.size - end} bytes after the last blob")
    return blobs


def _read(content: NDArray[np.uint8], offset: int) -> tuple[Blob, int]:
    """The blob whose metadata is here, and where it ends."""
    sentinel, code, length, start, padding = _METADATA.unpack_from(content.data, offset)
    if sentinel != _SENTINEL:
        raise FormatError(f"it begins with {sentinel:#x} instead of {_SENTINEL:#x}")
    if code not in _WHOLE and code not in _PARTS:
        raise FormatError(f"dtype {code} is unknown")
    if start != offset + _METADATA.size:
        raise FormatError(f"its data is at {start} instead of after its metadata")
    if length > content.size - start:
        raise FormatError(f"its {length} bytes end beyond the file")
    dtype, width = _PARTS.get(code) or (str(_WHOLE[code]), 8 * _WHOLE[code].itemsize)
    if code in _WHOLE:
        padding = 0
    if (8 * length - padding) % width or padding > min(7, 8 * length):
        raise FormatError(f"{length} bytes with {padding} bits of padding are no {dtype}")
    data = content[start : start + length]
    if padding and data[-1] >> (8 - padding):
        raise FormatError("padding bits are set")
    return Blob(dtype, (8 * length - padding) // width, data), start + length


def write_blobs(
    path: str | os.PathLike[str], blobs: Iterable[ArrayLike | Bitmask | Blob], *, overwrite: bool = False
) -> list[int]:
    """Write a weight file.

    Parameters
    ----------
    path : path-like
        The file to write. It appears when all is written.
    blobs : iterable of array_like, Bitmask or Blob
        Arrays in row-major order; a mask becomes one stream of uint1.
    overwrite : bool
        Whether an existing file is replaced.

    Returns
    -------
    list of int
        The offset by which a program refers to each.

    Raises
    ------
    FastSparseError
        If there is no type for a dtype, or `path` exists.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> s = fs.pack(np.float16([[0, 7, 0], [0, 0, 56.3]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "weight.bin")
    ...     offsets = write_blobs(path, [s.values, s.mask])
    ...     [(offset, blob.dtype, blob.array().tolist()) for offset, blob in read_blobs(path).items()]
    [(64, 'float16', [7.0, 56.3125]), (192, 'uint1', [0, 1, 0, 0, 0, 1])]
    """
    name = os.fspath(path)
    if os.path.lexists(path) and not overwrite:
        raise FastSparseError(f"{name}: it exists already; ask for overwriting to replace it")
    ready = [_blob(blob, at) for at, blob in enumerate(blobs)]
    partial = os.path.join(os.path.dirname(name), f".{os.path.basename(name)}.partial")
    offsets = []
    try:
        with open(partial, "wb") as file:
            file.write(_HEADER.pack(len(ready), _VERSION))
            for blob in ready:
                offset = _aligned(file.tell())
                code = _CODES[blob.dtype]
                width = _PARTS[code][1] if code in _PARTS else 8 * _WHOLE[code].itemsize
                padding = 8 * blob.data.nbytes - width * blob.size
                file.write(bytes(offset - file.tell()))
                file.write(_METADATA.pack(_SENTINEL, code, blob.data.nbytes, offset + _METADATA.size, padding))
                file.write(blob.data.data)
                offsets.append(offset)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
    return offsets


def _blob(given: ArrayLike | Bitmask | Blob, at: int) -> Blob:
    if isinstance(given, Blob):
        return given
    if isinstance(given, Bitmask):
        return Blob("uint1", math.prod(given.shape), flat_bits(given))
    array = np.ascontiguousarray(given)
    if str(array.dtype) not in _CODES or not array.dtype.isnative:
        names = ", ".join(map(str, _WHOLE.values()))
        raise FastSparseError(f"blob {at}: dtype {array.dtype} is not supported; expected a Bitmask or one of {names}")
    return Blob(str(array.dtype), array.size, array.reshape(-1).view(np.uint8))


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
