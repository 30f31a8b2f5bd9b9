"""Whether everything in a checkpoint is right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import ops
from fastsparse._errors import FastSparseError, FormatError
from fastsparse.checkpoint._format import Entry, Packed, Pruned, density
from fastsparse.checkpoint._hf_config import promises_stubs
from fastsparse.checkpoint._inspect import stored_row
from fastsparse.checkpoint._progress import Progress, Ticker
from fastsparse.checkpoint._reader import Reader, StrPath
from fastsparse.checkpoint._report import Report
from fastsparse.checkpoint._work import flat_bytes, kept_energy, mask_of
from fastsparse.masks import Bitmask
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import Nonzero
from fastsparse.quantized import QuantizedArray

__all__ = ["VerifyError", "verify"]


_PIECE = 64 << 20
"""Bytes of a tensor that `verify` holds against the source at once."""

_SHOWN = 2
"""Problems that a message names."""


class VerifyError(FormatError):
    """A checkpoint that is not what it should be.

    The message names the first tensors only.

    Attributes
    ----------
    problems : tuple of str
        All that is wrong.
    """

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        rest = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        super().__init__(f"{path}: {'; '.join(problems[:_SHOWN])}{rest}")
        self.path, self.problems = path, tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return VerifyError, (self.path, self.problems)


def verify(
    path: StrPath, against: StrPath | None = None, *, progress: Progress | None = None, trust_shards: bool = False
) -> Report:
    """Check every invariant of every tensor of a checkpoint.

    Parameters
    ----------
    path : path-like
        A checkpoint, as `open` takes it.
    against : path-like, optional
        The dense checkpoint that it was made from. Then every tensor has to be there, dense ones and kept elements with
        the same bits, and each mask has to be the one that the recorded pattern selects. Where no pattern is recorded,
        what was dropped is not judged. Of calibrated tensors names, shapes and the pattern of the mask are checked,
        not the values, which are not those of the source; their rows in the report say `calibrated`.
    progress : callable, optional
        Called with bytes done, bytes in all and the tensor's name.
    trust_shards : bool
        Whether the shards of folders are taken as they are where an index says something else of their tensors.

    Returns
    -------
    Report
        With the kept energies where `against` is given.

    Raises
    ------
    VerifyError
        If something is wrong; its `problems` name every tensor that is.
    FormatError
        If a header is not valid.
    OSError
        If a file cannot be read.
    """
    started = time.perf_counter()
    checked = Reader(path, trust_shards=trust_shards)
    dense = None if against is None else Reader(against, trust_shards=trust_shards)
    if dense is not None:
        _check_related(checked, dense)
    problems = [f"the record is stale: {why}" for why in checked.stale]
    if checked.folder is not None and promises_stubs(checked.folder.read_config()):
        found = (found for found in checked.tensors.values() if isinstance(found, Packed) and not found.stub)
        problems += [
            f"tensor {tensor.name!r} has no empty tensor under its name, which stops other loaders" for tensor in found
        ]
    if dense is not None:
        problems += [f"tensor {name!r} is missing" for name in dense.tensors if name not in checked.tensors]
    ticker = Ticker(progress, [("checking", sum(entry.nbytes for entry in checked.entries.values()))])
    rows = []
    for name in checked.tensors:
        row = stored_row(checked, name)
        try:
            row = replace(row, kept_energy=_check(checked, dense, name))
        except FastSparseError as error:
            problems.append(str(error).removeprefix(f"{checked.path}: "))
        rows.append(row)
        ticker.tick(row.bytes_after, name)
    if problems:
        raise VerifyError(checked.path, problems)
    return Report(checked.path, None, tuple(rows), time.perf_counter() - started)


def _check_related(checked: Reader, dense: Reader) -> None:
    """Refuses a source that nothing of what is checked can have been made from."""
    if any(isinstance(found, Packed) for found in dense.tensors.values()):
        raise FastSparseError(f"against: {dense.path} holds packed tensors; expected the dense checkpoint")
    pairs = ((found, dense.tensors.get(name)) for name, found in checked.tensors.items())
    if checked.tensors and not any(other is not None and other.shape == found.shape for found, other in pairs):
        raise VerifyError(checked.path, [f"no tensor has name and shape of one in {dense.path}, another model"])


def _check(checked: Reader, dense: Reader | None, name: str) -> float | None:
    """Checks one tensor; returns the kept energy where that is known."""
    found = checked.tensors[name]
    energy = None
    if dense is not None:
        original = dense.tensors.get(name)
        with checked.error_context(name):
            if not isinstance(original, Entry):
                raise FormatError("it is not a dense tensor of the source")
            if (original.dtype, original.shape) != (found.dtype, found.shape):
                raise FormatError(f"the source has {original.dtype} {list(original.shape)}")
            if isinstance(found, Packed):
                energy = _check_kept(checked.packed(found), found, dense.array(original))
            elif name in checked.pruned:
                energy = _check_zeros(checked.array(found), checked.pruned[name], dense.array(original))
            elif not _same(checked.raw(found), dense.raw(original)):
                raise FormatError("it differs from the source")
        dense.release(name)
    elif isinstance(found, Packed):
        checked.packed(found)
    elif name in checked.pruned:
        with checked.error_context(name):
            _check_zeros(checked.array(found), checked.pruned[name])
    checked.release(name)
    return energy


def _check_kept(array: BitmaskArray | QuantizedArray, found: Packed, w: NDArray[Any]) -> float | None:
    """Holds a packed tensor against the original, where its values come from there; returns the kept energy."""
    if found.calibrated:
        return None
    for start, stop in _pieces(w):
        part, own = (array.rows(start, stop), w[start:stop]) if w.ndim > 1 else (array, w)
        kept = ops.pack(own, part.mask)
        if part != (kept if found.bits is None else kept.quantize(found.bits)):
            raise FormatError("kept elements differ from the source")
    if found.pattern is not None and mask_of(w, found.pattern, found.exact) != array.mask:
        raise FormatError(f"the mask is not the one that {found.pattern!r} selects")
    return kept_energy(array.values if isinstance(array, BitmaskArray) else ops.pack(w, array.mask).values, w)


def _check_zeros(dense: NDArray[Any], pruned: Pruned, w: NDArray[Any] | None = None) -> float | None:
    """Holds a dense tensor against what is recorded of its zeros, and against the original; returns the kept energy."""
    if density(ops.select(dense, Nonzero()).count, dense.shape) != pruned.density:
        raise FormatError(f"it has other zeros than recorded: the density {pruned.density!r} is wrong")
    if pruned.calibrated:
        w = dense  # the values are its own, and the pattern takes nothing more from them
    if w is None:
        return None
    bits = ops.select(w, pruned.pattern).bits
    for start, stop in _pieces(w):
        part, own = (bits[start:stop], w[start:stop]) if w.ndim > 1 else (bits, w)
        expected = ops.apply_mask(own, Bitmask.from_bits(part, own.shape))
        if not np.array_equal(flat_bytes(expected), flat_bytes(dense[start:stop] if w.ndim > 1 else dense)):
            raise FormatError(f"it is not what {pruned.pattern!r} makes of {'it' if w is dense else 'the source'}")
    return None if w is dense else kept_energy(dense, w)


def _same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return all(np.array_equal(a[at : at + _PIECE], b[at : at + _PIECE]) for at in range(0, a.size, _PIECE))


def _pieces(w: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Some rows at a time, so that what is made of them is small; of fewer than two dimensions all at once."""
    if w.ndim < 2:
        yield 0, w.size
        return
    step = max(1, _PIECE * len(w) // max(w.nbytes, 1))
    for start in range(0, len(w), step):
        yield start, min(start + step, len(w))
