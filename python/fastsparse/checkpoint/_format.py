"""Packed tensors among the keys of a safetensors file: names, records, sizes. `docs/format.md` is the description.

A packed tensor is four keys with a common prefix. Their names alone say which tensor they are: ``m.compressed`` is
``m.weight``, as compressed-tensors has it, and every other tensor has a *stub* among the keys, an empty tensor under
its own name. A record in the metadata adds what the keys do not say, such as the pattern.
"""

import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any

import ml_dtypes
import numpy as np

from fastsparse._errors import FastSparseError, FormatError
from fastsparse.masks import matrix_view
from fastsparse.patterns import NM, Pattern, pattern
from fastsparse.quantized import BITS

__all__ = [
    "DTYPES",
    "METADATA_KEY",
    "PACKABLE",
    "QUANTIZABLE",
    "SCALE",
    "TWO_FOUR",
    "Entry",
    "Packed",
    "Pruned",
    "Record",
    "density",
    "dtype_name",
    "needs_stub",
    "packed_by_names",
    "part_groups",
    "prefix_for",
    "read_record",
    "refuse_marlin",
    "tensors_of",
    "write_record",
]

FORMAT_VERSION = 3
"""The latest. In version 1 only the record had the names that the keys do not tell; 3 has weights of eight bits.

What has none is written as version 2, which earlier readers know.
"""
METADATA_KEY = "fastsparse"
PACKABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8")
"""The dtypes that can be packed, floating ones first."""
QUANTIZABLE = PACKABLE[:4]
"""Those that can be stored in eight bits."""
PARTS = ("shape", "compressed", "bitmask", "row_offsets")
SCALE = "row_scale"
"""The fifth part of a tensor that is stored in eight bits."""
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
    that the mask is one that `pattern` gives; it is not where kept elements that were zero were dropped. `stub` says
    that the tensor's own name is among the keys, with an empty tensor. With `bits` the values are int8, and a part more
    has the scales of the rows; `dtype` is that of the tensor all the same, and of its stub. `calibrated` says that mask
    and values come from calibration: they need not be those of the source, and the pattern is what the mask obeys.
    """

    name: str
    prefix: str
    dtype: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    exact: bool
    layout: str = "matrix"
    stub: bool = False
    bits: int | None = None
    calibrated: bool = False

    def key(self, part: str) -> str:
        """The key of a part."""
        return f"{self.prefix}.{part}"

    @property
    def keys(self) -> list[str]:
        """The keys of all parts, and of the stub."""
        scale = () if self.bits is None else (SCALE,)
        parts = [self.key(part) for part in (*(PARTS if self.layout != "2:4" else PARTS[:3]), *scale)]
        return [*parts, self.name] if self.stub else parts

    @property
    def nbytes(self) -> int:
        """Size of the dense tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def values_dtype(self) -> str:
        """The dtype of the kept elements as they are stored."""
        return self.dtype if self.bits is None else "I8"

    def entries(self, nnz: int) -> dict[str, Entry]:
        """The parts as they have to be, with `nnz` elements kept."""
        rows, cols = matrix_view(self.shape)
        kind = self.values_dtype
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
            "compressed": Entry(self.key("compressed"), kind, values, math.prod(values) * DTYPES[kind].itemsize),
            "bitmask": Entry(self.key("bitmask"), "U8", mask, math.prod(mask)),
        }
        if self.layout != "2:4":
            found["row_offsets"] = Entry(self.key("row_offsets"), "I64", offsets, 8 * math.prod(offsets))
        if self.bits is not None:
            found[SCALE] = Entry(self.key(SCALE), "F32", (rows,), 4 * rows)
        if self.stub:
            found["stub"] = Entry(self.name, self.dtype, (0,), 0)
        return found


@dataclass(frozen=True)
class Pruned:
    """What is recorded of a dense tensor that has zeros; `density` is the share of its other elements."""

    pattern: Pattern
    density: float
    calibrated: bool = False


def prefix_for(name: str, taken: Collection[str]) -> str | None:
    """The prefix of a tensor's keys that collides with none of `taken`.

    Without ``.weight`` where possible, as other readers expect, else the whole name; None where neither is free. Where
    something else has the name without ``.weight``, that would look like the stub of these keys.
    """
    short = name.removesuffix(".weight")
    for prefix in dict.fromkeys((short, name)):
        if (prefix == name or prefix not in taken) and not any(f"{prefix}.{part}" in taken for part in (*PARTS, SCALE)):
            return prefix
    return None


def needs_stub(name: str, prefix: str) -> bool:
    """Whether the keys of a tensor do not tell its name to who knows the rule of compressed-tensors only."""
    return name != f"{prefix}.weight" or _ends_with_weight(prefix)


def _ends_with_weight(name: str) -> bool:
    return name == "weight" or name.endswith(".weight")


def write_record(packed: Iterable[tuple[Packed, float]], pruned: Mapping[str, Pruned] | None = None) -> str:
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
            **({} if tensor.bits is None else {"bits": tensor.bits}),
            **_calibrated(tensor),
        }
        for tensor, density in packed
    }
    version = FORMAT_VERSION if any("bits" in fields for fields in records.values()) else 2
    document: dict[str, Any] = {"format": version, "packed": records}
    if pruned:
        document["pruned"] = {
            name: {"pattern": str(tensor.pattern), "density": tensor.density, **_calibrated(tensor)}
            for name, tensor in pruned.items()
        }
    return json.dumps(document, ensure_ascii=False)


def _calibrated(tensor: Packed | Pruned) -> dict[str, bool]:
    return {"calibrated": True} if tensor.calibrated else {}


@dataclass(frozen=True)
class Record:
    """What the metadata of a file says of its tensors, as far as the keys bear it out.

    `pruned` are the dense tensors that have zeros. `stale` says what does not fit, where the
    keys show that another tool has saved the file again and kept its metadata; None where all fits. Then the tensors
    that the record does not have are to be read by the names of their keys.
    """

    packed: tuple[Packed, ...] = ()
    pruned: Mapping[str, Pruned] = field(default_factory=dict)
    stale: str | None = None


def read_record(entries: Mapping[str, Entry], text: str) -> Record:
    """The record of a file with these keys.

    Raises
    ------
    FormatError
        If it is not valid, of a later version, or contradicts the keys in another way than a stale one does.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _foreign(entries, f"not valid JSON: {error}")
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int:
        return _foreign(entries, f"{text[:40]!r} is no record of fastsparse")
    if not 1 <= version <= FORMAT_VERSION:
        raise FormatError(
            f"metadata {METADATA_KEY!r}: format {version!r} is unknown; this version reads 1 to {FORMAT_VERSION}. If a "
            "later version of fastsparse wrote the file, update"
        )
    records, pruned = document.get("packed"), document.get("pruned", {})
    if not isinstance(records, dict):
        raise FormatError(f"metadata {METADATA_KEY!r}: 'packed' is not an object")
    if not isinstance(pruned, dict):
        raise FormatError(f"metadata {METADATA_KEY!r}: 'pruned' is not an object")
    packed, misfits = [], []
    for name, fields in records.items():
        tensor, misfit = _one_record(entries, name, fields)
        packed += [] if tensor is None else [tensor]
        misfits += [] if misfit is None else [misfit]
    owned = {key for tensor in packed for key in tensor.keys}
    misfits += [f"it does not have {prefix!r}" for prefix, keys in part_groups(entries).items() if not keys <= owned]
    if misfits and version == 1:
        _refuse_lost_names(entries, owned, records)
    still = {}
    for name, fields in pruned.items():
        recorded = _one_pruned(name, fields)
        if any(name == tensor.name for tensor in packed):
            raise FormatError(f"tensor {name!r}: metadata: it is there as a packed and as a dense one")
        if name in entries:
            still[name] = recorded
        else:
            misfits.append(f"{name!r} is not there as a dense tensor")
    more = f"; so it is with {len(misfits) - 1} more" if len(misfits) > 1 else ""
    return Record(tuple(packed), still, misfits[0] + more if misfits else None)


def _foreign(entries: Mapping[str, Entry], why: str) -> Record:
    """What to make of metadata that is no record: harmless where nothing is packed."""
    if any(part_groups(entries)):
        raise FormatError(f"metadata {METADATA_KEY!r}: {why}")
    return Record(stale=why)


def _refuse_lost_names(entries: Mapping[str, Entry], owned: set[str], records: Mapping[str, Any]) -> None:
    """Raises where packed keys have lost the record that alone had their names, as in version 1."""
    for prefix, keys in part_groups(entries).items():
        if not keys <= owned:
            for name, fields in records.items():
                if needs_stub(name, fields["prefix"]):
                    raise FormatError(
                        f"metadata {METADATA_KEY!r}: the record is stale and has no {prefix!r}: another tool has "
                        "renamed the keys of the file and kept its metadata. Files of format 1 have names such as "
                        f"{name!r} in the record only; compress the model again"
                    )


def _one_pruned(name: str, fields: Any) -> Pruned:
    form, share = (fields.get(key) if isinstance(fields, dict) else None for key in ("pattern", "density"))
    if not isinstance(form, str) or not isinstance(share, float):
        raise FormatError(f"tensor {name!r}: metadata: pattern {form!r} with density {share!r}")
    try:
        return Pruned(pattern(form), share, _is_calibrated(fields))
    except FastSparseError as error:
        raise FormatError(f"tensor {name!r}: metadata: {error}") from None


def _is_calibrated(fields: Mapping[str, Any]) -> bool:
    found = fields.get("calibrated", False)
    if not isinstance(found, bool):
        raise FastSparseError(f"'calibrated' is {found!r}")
    return found


def tensors_of(entries: Mapping[str, Entry], packed: Iterable[Packed]) -> dict[str, Packed | Entry]:
    """The tensors that keys stand for, by name, given those that are packed.

    Raises
    ------
    FormatError
        If two tensors have one name or one key.
    """
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


_FIELDS: dict[str, type | UnionType] = {
    "prefix": str,
    "shape": list,
    "dtype": str,
    "pattern": str | None,
    "exact": bool,
    "density": float,
}


def _one_record(entries: Mapping[str, Entry], name: str, fields: Any) -> tuple[Packed | None, str | None]:
    """A packed tensor as recorded, and in what way the record is stale.

    None, where the file has not one of its parts. With another dtype, where the values have been cast.
    """

    def fail(why: str) -> FormatError:
        return FormatError(f"tensor {name!r}: metadata: {why}")

    if not isinstance(fields, dict):
        raise fail("not an object")
    for key, kind in _FIELDS.items():
        if key not in fields or not isinstance(fields[key], kind):
            raise fail(f"{key!r} is {fields.get(key, 'missing')!r}")
    try:
        chosen = None if fields["pattern"] is None else pattern(fields["pattern"])
        calibrated = _is_calibrated(fields)
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
    bits = fields.get("bits")
    if bits is not None and (type(bits) is not int or bits != BITS or layout != "matrix"):
        raise fail(f"{bits!r} bits in layout {layout!r}")
    own = Packed(name, fields["prefix"], fields["dtype"], shape, chosen, fields["exact"], layout)
    tensor = replace(own, stub=name in entries, bits=bits, calibrated=calibrated)
    if not any(tensor.key(part) in entries for part in PARTS):
        return None, f"{name!r} is not there in packed form"
    misfit, values = None, entries.get(tensor.key("compressed"))
    if values is not None and values.dtype != tensor.dtype and {values.dtype, tensor.dtype} <= {*PACKABLE[:6]}:
        misfit = f"{name!r} is recorded as {tensor.dtype} and there as {values.dtype}"
        tensor = replace(tensor, dtype=values.dtype)
    kept = check_parts(entries, tensor)
    if fields["density"] != density(kept, shape):
        raise fail(f"density {fields['density']!r}, but {kept} elements are kept")
    return tensor, misfit


def density(kept: int, shape: tuple[int, ...]) -> float:
    """Share of elements that are kept; 1 for a tensor without elements."""
    size = math.prod(shape)
    return kept / size if size else 1.0


def packed_by_names(entries: Mapping[str, Entry], shape_of: Callable[[Entry], tuple[int, ...]]) -> list[Packed]:
    """The packed tensors among keys without a record.

    Each has the name of its stub; one of int8 with a stub of another dtype is of that, in eight bits. What has none is
    of compressed-tensors, which means ``m.weight`` by ``m.compressed``. Its versions up to 0.8.1 have the whole name in
    the key, and up to 0.3 pack every tensor: where one prefix ends with ``weight``, ``m.bias.compressed`` is
    ``m.bias``.

    Parameters
    ----------
    entries : mapping
        The keys, of several files too.
    shape_of : callable
        Reads a ``.shape``.

    Raises
    ------
    FormatError
        If parts of a tensor are missing, or do not fit each other.
    """
    groups = part_groups(entries)
    stubs = {prefix: _stub(entries, prefix, groups) for prefix in groups}
    whole = any(stub is None and _ends_with_weight(prefix) for prefix, stub in stubs.items())
    packed = []
    for prefix, stub in stubs.items():
        name = stub or (prefix if whole else f"{prefix}.weight")
        for part in PARTS[:3]:
            if f"{prefix}.{part}" not in entries:
                raise FormatError(f"tensor {name!r}: {f'{prefix}.{part}'!r} is missing")
        if f"{prefix}.weight" in groups and stub is None:
            raise FormatError(f"tensor '{prefix}.weight' occurs twice")
        mask, shape = entries[f"{prefix}.bitmask"], entries[f"{prefix}.shape"]
        if shape.dtype != "I64":
            raise FormatError(f"tensor {name!r}: {shape.key!r} is {shape.dtype}, expected I64")
        values = entries[f"{prefix}.compressed"]
        tensor = Packed(name, prefix, values.dtype, shape_of(shape), None, False, stub=stub is not None)
        if stub is not None and values.dtype == "I8" != entries[stub].dtype:
            tensor = replace(tensor, dtype=entries[stub].dtype, bits=BITS)
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


def part_groups(entries: Collection[str]) -> dict[str, set[str]]:
    """By their prefix the keys of packed tensors, of which two that nothing else has are enough to tell."""
    groups: dict[str, set[str]] = {}
    for key in entries:
        prefix, _, part = key.rpartition(".")
        if part in PARTS[1:]:
            groups.setdefault(prefix, set()).add(key)
    return {prefix: keys for prefix, keys in groups.items() if len(keys) > 1}


def _stub(entries: Mapping[str, Entry], prefix: str, groups: Collection[str]) -> str | None:
    """The name of the tensor with this prefix, if there is an empty tensor that says it."""
    for name in (prefix, f"{prefix}.weight"):
        if name in entries and entries[name].shape == (0,) and (name == prefix or name not in groups):
            return name
    return None


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
    if tensor.dtype not in (PACKABLE if tensor.bits is None else QUANTIZABLE):
        form = "packed" if tensor.bits is None else f"stored in {tensor.bits} bits"
        raise FormatError(f"tensor {tensor.name!r}: dtype {tensor.dtype} cannot be {form}")
    values = entries.get(tensor.key("compressed"))
    kept = math.prod(values.shape) if values is not None else 0
    for wanted in tensor.entries(kept).values():
        found = entries.get(wanted.key)
        if found is None:
            raise FormatError(f"tensor {tensor.name!r}: {wanted.key!r} is missing")
        if wanted.key == tensor.name and found.shape != (0,):
            raise FormatError(f"tensor {tensor.name!r} occurs twice, dense and packed")
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape) and wanted.key != tensor.name:
            have, need = (f"{entry.dtype} {list(entry.shape)}" for entry in (found, wanted))
            raise FormatError(f"tensor {tensor.name!r}: {wanted.key!r} is {have}, expected {need}")
    # A mask of no bytes may still claim rows without end; offsets would be made for each of them.
    if matrix_view(tensor.shape)[0] > 8 + sum(entries[key].nbytes for key in tensor.keys):
        raise FormatError(f"tensor {tensor.name!r}: shape {list(tensor.shape)} has more rows than its parts have bytes")
    return kept
