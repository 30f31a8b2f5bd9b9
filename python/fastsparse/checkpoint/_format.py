"""Packed tensors among the keys of a safetensors file: names, records, sizes. `docs/format.md` is the description.

A packed tensor is four keys with a common prefix. Which keys those are is written down in the file's metadata; files of
compressed-tensors have no such record, there the names alone decide.
"""

import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any

import ml_dtypes
import numpy as np

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.masks import matrix_view
from fastsparse.patterns import NM, Pattern, pattern

__all__ = [
    "DTYPES",
    "METADATA_KEY",
    "PACKABLE",
    "TWO_FOUR",
    "Entry",
    "Packed",
    "density",
    "dtype_name",
    "prefix_for",
    "read_keys",
    "read_pruned",
    "refuse_marlin",
    "write_record",
]

FORMAT_VERSION = 1
METADATA_KEY = "fastsparse"
PACKABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8")
"""The dtypes that can be packed, floating ones first."""
PARTS = ("shape", "compressed", "bitmask", "row_offsets")
LAYOUTS = ("matrix", "last-axis", "2:4")
_MARLIN = ("weight_packed", "scale_packed", "meta")

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
        "C64": np.complex64,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    }.items()
}
"""The dtypes of safetensors that NumPy can hold; those with less than eight bits are not among them."""

TWO_FOUR = NM(zeros=2, of=4)

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any], tensor: str) -> str:
    """The name that safetensors gives a dtype."""
    try:
        return _NAMES[dtype]
    except KeyError:
        raise FastSparseError(f"tensor {tensor!r}: safetensors has no dtype for {dtype}") from None


@dataclass(frozen=True)
class Entry:
    """A key of a file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Packed:
    """A packed tensor of a file: where its parts are and what is recorded about it.

    `layout` is ``"matrix"`` for masks of the matrix view, ``"last-axis"`` for those of compressed-tensors, which pad
    every run along the last axis, and ``"2:4"`` for its sparse-24-bitmask format, which has no offsets. `exact` says
    that the mask is one that `pattern` gives; it is not where kept elements that were zero were dropped.
    """

    name: str
    prefix: str
    dtype: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    exact: bool
    layout: str = "matrix"

    def key(self, part: str) -> str:
        """The key of one of `PARTS`."""
        return f"{self.prefix}.{part}"

    @property
    def keys(self) -> list[str]:
        """The keys of all parts."""
        return [self.key(part) for part in (PARTS if self.layout != "2:4" else PARTS[:3])]

    @property
    def nbytes(self) -> int:
        """Size of the dense tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def entries(self, nnz: int) -> dict[str, Entry]:
        """The parts as they have to be, with `nnz` elements kept."""
        rows, cols = matrix_view(self.shape)
        shape: tuple[int, ...] = (len(self.shape),)
        values: tuple[int, ...] = (nnz,)
        mask: tuple[int, ...] = (rows, -(-cols // 8))
        offsets: tuple[int, ...] = (rows,)
        if self.layout == "last-axis":
            mask, offsets = (*self.shape[:-1], -(-self.shape[-1] // 8)), self.shape[:-1]
        elif self.layout == "2:4":
            shape, values = (2, 1), (rows, cols // 2)
        found = {
            "shape": Entry(self.key("shape"), "I64", shape, 8 * math.prod(shape)),
            "compressed": Entry(
                self.key("compressed"), self.dtype, values, math.prod(values) * DTYPES[self.dtype].itemsize
            ),
            "bitmask": Entry(self.key("bitmask"), "U8", mask, math.prod(mask)),
        }
        if self.layout != "2:4":
            found["row_offsets"] = Entry(self.key("row_offsets"), "I64", offsets, 8 * math.prod(offsets))
        return found


def prefix_for(name: str, taken: Collection[str]) -> str | None:
    """The prefix of a tensor's keys that collides with none of `taken`.

    Without ``.weight`` where possible, as other readers expect, else the whole name; None where neither is free.
    """
    for prefix in (name.removesuffix(".weight"), name):
        if not any(f"{prefix}.{part}" in taken for part in PARTS):
            return prefix
    return None


def write_record(
    packed: Iterable[tuple[Packed, float]], pruned: Mapping[str, tuple[Pattern, float]] | None = None
) -> str:
    """What the metadata says about packed tensors and about those that are pruned and yet dense; with densities."""
    records = {
        tensor.name: {
            "prefix": tensor.prefix,
            "shape": tensor.shape,
            "dtype": tensor.dtype,
            "pattern": None if tensor.pattern is None else str(tensor.pattern),
            "exact": tensor.exact,
            "density": density,
            **({} if tensor.layout == "matrix" else {"layout": tensor.layout}),
        }
        for tensor, density in packed
    }
    document: dict[str, Any] = {"format": FORMAT_VERSION, "packed": records}
    if pruned:
        document["pruned"] = {
            name: {"pattern": str(pattern), "density": density} for name, (pattern, density) in pruned.items()
        }
    return json.dumps(document, ensure_ascii=False)


def read_pruned(tensors: Mapping[str, Packed | Entry], record: str) -> dict[str, tuple[Pattern, float]]:
    """The patterns and densities of dense tensors that are pruned, from a record that `read_keys` has read.

    Raises
    ------
    FormatError
        If what the record says of them is not valid, or one is not there.
    """
    records = json.loads(record).get("pruned", {})
    if not isinstance(records, dict):
        raise FormatError(f"metadata {METADATA_KEY!r}: 'pruned' is not an object")
    found = {}
    for name, fields in records.items():
        if not isinstance(tensors.get(name), Entry):
            raise FormatError(f"tensor {name!r}: metadata: there is no such dense tensor")
        form, share = (fields.get(key) if isinstance(fields, dict) else None for key in ("pattern", "density"))
        if not isinstance(form, str) or not isinstance(share, float):
            raise FormatError(f"tensor {name!r}: metadata: pattern {form!r} with density {share!r}")
        try:
            found[name] = pattern(form), share
        except FastSparseError as error:
            raise FormatError(f"tensor {name!r}: metadata: {error}") from None
    return found


def read_keys(
    entries: Mapping[str, Entry], record: str | None, shape_of: Callable[[Entry], tuple[int, ...]]
) -> dict[str, Packed | Entry]:
    """The tensors that the keys of a file stand for, by name.

    Parameters
    ----------
    entries : mapping
        The keys of the file.
    record : str or None
        What `write_record` gave; None where the file has none.
    shape_of : callable
        Reads a ``.shape``; needed where there is no record.

    Raises
    ------
    FormatError
        If the record is not valid, does not fit the keys, or two tensors have one name or one key.
    """
    packed = _from_names(entries, shape_of) if record is None else _from_record(entries, record)
    owners: dict[str, Packed] = {}
    for tensor in packed:
        for key in tensor.keys:
            if owners.setdefault(key, tensor) is not tensor:
                raise FormatError(f"tensor {tensor.name!r}: its keys are those of {owners[key].name!r} too")
    tensors: dict[str, Packed | Entry] = {}
    for key, entry in entries.items():
        owner = owners.get(key)
        if owner is not None and key != owner.key("compressed"):
            continue
        name = key if owner is None else owner.name
        if name in tensors:
            raise FormatError(f"tensor {name!r} occurs twice")
        tensors[name] = owner or entry
    return tensors


def _from_record(entries: Mapping[str, Entry], record: str) -> list[Packed]:
    try:
        document = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"metadata {METADATA_KEY!r}: not valid JSON: {error}") from None
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(
            f"metadata {METADATA_KEY!r}: format {version!r} is unknown; this version reads {FORMAT_VERSION}"
        )
    records = document.get("packed")
    if not isinstance(records, dict):
        raise FormatError(f"metadata {METADATA_KEY!r}: 'packed' is not an object")
    return [_one_record(entries, name, fields) for name, fields in records.items()]


_FIELDS: dict[str, type | UnionType] = {
    "prefix": str,
    "shape": list,
    "dtype": str,
    "pattern": str | None,
    "exact": bool,
    "density": float,
}


def _one_record(entries: Mapping[str, Entry], name: str, fields: Any) -> Packed:
    def fail(why: str) -> FormatError:
        return FormatError(f"tensor {name!r}: metadata: {why}")

    if not isinstance(fields, dict):
        raise fail("not an object")
    for key, kind in _FIELDS.items():
        if key not in fields or not isinstance(fields[key], kind):
            raise fail(f"{key!r} is {fields.get(key, 'missing')!r}")
    try:
        chosen = None if fields["pattern"] is None else pattern(fields["pattern"])
    except FastSparseError as error:
        raise fail(str(error)) from None
    if len(fields["shape"]) > 64 or any(type(n) is not int or not 0 <= n <= sys.maxsize for n in fields["shape"]):
        raise fail(f"shape {fields['shape'][:65]!r}")
    shape, layout = tuple(fields["shape"]), fields.get("layout", "matrix")
    if layout not in LAYOUTS:
        raise fail(f"layout {layout!r} is unknown")
    if layout == "last-axis" and not shape:
        raise fail("a scalar has no last axis")
    if layout == "2:4" and (chosen != TWO_FOUR or not fields["exact"] or not _has_groups(shape)):
        raise fail("layout 2:4 is for matrices with groups of 4 and the pattern 2:4")
    tensor = Packed(name, fields["prefix"], fields["dtype"], shape, chosen, fields["exact"], layout)
    kept = check_parts(entries, tensor)
    if fields["density"] != density(kept, shape):
        raise fail(f"density {fields['density']!r}, but {kept} elements are kept")
    return tensor


def density(kept: int, shape: tuple[int, ...]) -> float:
    """Share of elements that are kept; 1 for a tensor without elements."""
    size = math.prod(shape)
    return kept / size if size else 1.0


def _from_names(entries: Mapping[str, Entry], shape_of: Callable[[Entry], tuple[int, ...]]) -> list[Packed]:
    """What compressed-tensors means by its keys: ``m.compressed`` is ``m.weight``.

    Its versions up to 0.8.1 have the whole name in the key, and up to 0.3 pack every tensor: where one prefix ends with
    ``weight``, ``m.bias.compressed`` is ``m.bias``.
    """
    ends = (key.removesuffix(".compressed") for key in entries if key.endswith(".compressed"))
    prefixes = {prefix: None for prefix in ends if {f"{prefix}.bitmask", f"{prefix}.shape"} <= entries.keys()}
    whole = any(prefix == "weight" or prefix.endswith(".weight") for prefix in prefixes)
    packed = []
    for prefix in prefixes:
        mask, shape = entries[f"{prefix}.bitmask"], entries[f"{prefix}.shape"]
        if f"{prefix}.weight" in prefixes:
            raise FormatError(f"tensor '{prefix}.weight' occurs twice")
        name = prefix if whole else f"{prefix}.weight"
        if shape.dtype != "I64":
            raise FormatError(f"tensor {name!r}: {shape.key!r} is {shape.dtype}, expected I64")
        tensor = Packed(name, prefix, entries[f"{prefix}.compressed"].dtype, shape_of(shape), None, False)
        if f"{prefix}.row_offsets" not in entries:
            if not _has_groups(tensor.shape):
                raise FormatError(
                    f"tensor {name!r}: shape {list(tensor.shape)} without row_offsets; 2:4 needs groups of 4"
                )
            tensor = replace(tensor, pattern=TWO_FOUR, exact=True, layout="2:4")
        elif tensor.shape and mask.shape != (matrix_view(tensor.shape)[0], -(-matrix_view(tensor.shape)[1] // 8)):
            tensor = replace(tensor, layout="last-axis")
        check_parts(entries, tensor)
        packed.append(tensor)
    return packed


def _has_groups(shape: tuple[int, ...]) -> bool:
    """Whether the 2:4 layout can hold a tensor of this shape."""
    return len(shape) == 2 and shape[1] % 4 == 0


def refuse_marlin(keys: Collection[str]) -> None:
    """Raises where keys are those of the marlin-24 layout, in which nothing tells the weights but a GPU kernel's order.

    Raises
    ------
    FormatError
        With the name of the layout and of the first module.
    """
    for key in keys:
        module = key.removesuffix(f".{_MARLIN[0]}")
        if module != key and all(f"{module}.{part}" in keys for part in _MARLIN):
            raise FormatError(f"module {module!r} is in the marlin-24 layout, which is not supported")


def check_parts(entries: Mapping[str, Entry], tensor: Packed) -> int:
    """Checks that the keys of a packed tensor are there, of the dtypes and shapes that its shape asks for.

    Returns the number of elements kept.
    """
    if tensor.dtype not in PACKABLE:
        raise FormatError(f"tensor {tensor.name!r}: dtype {tensor.dtype} cannot be packed")
    values = entries.get(tensor.key("compressed"))
    kept = math.prod(values.shape) if values is not None else 0
    for wanted in tensor.entries(kept).values():
        found = entries.get(wanted.key)
        if found is None:
            raise FormatError(f"tensor {tensor.name!r}: {wanted.key!r} is missing")
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            have, need = (f"{entry.dtype} {list(entry.shape)}" for entry in (found, wanted))
            raise FormatError(f"tensor {tensor.name!r}: {wanted.key!r} is {have}, expected {need}")
    # A mask of no bytes may still claim rows without end; offsets would be made for each of them.
    if matrix_view(tensor.shape)[0] > 8 + sum(entries[key].nbytes for key in tensor.keys):
        raise FormatError(f"tensor {tensor.name!r}: shape {list(tensor.shape)} has more rows than its parts have bytes")
    return kept
