"""What one does with weights: select, prune, pack, unpack, compute."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastsparse import _backend
from fastsparse._errors import FastSparseError, torch_hint
from fastsparse.masks import Bitmask, as_mask, new_mask
from fastsparse.packed import BitmaskArray, new_array
from fastsparse.patterns import Pattern
from fastsparse.patterns import pattern as _pattern
from fastsparse.prepared import PreparedWeights
from fastsparse.quantized import QuantizedArray

__all__ = ["apply_mask", "compress", "linear", "pack", "prune", "select", "set_num_threads", "show_runtime", "unpack"]


def select(
    w: ArrayLike,
    pattern: str | Pattern,
    *,
    scores: ArrayLike | None = None,
    column_scale: ArrayLike | None = None,
    threads: int | None = None,
) -> Bitmask:
    """Choose what to keep.

    Counts are exact. Ties keep the lower index. The result is the same for every number of threads, instruction set and
    backend. Time is that of reading `w` about once (unstructured, n:m up to 16, blocks) to a few times.

    Parameters
    ----------
    w : array_like
        Weights: float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, int8 or uint8, of any shape.
    pattern : Pattern or str
        Which weights go, or its short form; see `fs.pattern`.
    scores : array_like, optional
        What is ranked instead of |w|: shape of `w`, any of its dtypes. Signed: the larger is kept. Blocks rank by their
        mean.
    column_scale : array_like, optional
        A finite factor ≥ 0 for each column, multiplied into |w| while ranking (|w|·‖x‖ of Wanda): of length `cols` of
        the matrix view, or ``w.shape[1]``. The product is float32, for float64 weights float64.
    threads : int, optional
        Upper bound for this call.

    Returns
    -------
    Bitmask
        Of the shape of `w`; set bits are kept.

    Raises
    ------
    FastSparseError
        For a NaN in what is ranked (the message has its index), unsupported dtypes, factors that are not finite and
        shapes that do not fit.
    MemoryError
        If there is no memory for the mask, 1/32 of float32 weights, or for the work on it, usually less than that.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> w = np.float32([[3, -1, 2, -4], [1, 1, 1, 1]])
    >>> fs.select(w, "50%").to_bool()
    array([[ True,  True,  True,  True],
           [False, False, False, False]])
    >>> fs.select(w, "50%/row").to_bool()
    array([[ True, False, False,  True],
           [ True,  True, False, False]])
    >>> fs.select(w, fs.NM(zeros=2, of=4)).to_bool()
    array([[ True, False, False,  True],
           [ True,  True, False, False]])
    """
    return new_mask(*_backend.active.select(w, _pattern(pattern)._spec, scores, column_scale, threads))


def apply_mask(w: ArrayLike, mask: Bitmask | ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The weights with zeros where the mask keeps nothing.

    Parameters
    ----------
    w : array_like
        Weights.
    mask : Bitmask or array_like of bool
        Of the shape of `w`.
    out : ndarray, optional
        Written to and returned: writeable, C-contiguous, of the shape and dtype of `w`. It may be `w` itself.

    Raises
    ------
    FastSparseError
        If mask or `out` do not fit, or `out` overlaps an input that it is not.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> fs.apply_mask(np.int8([5, 6, 7]), [True, False, True])
    array([5, 0, 7], dtype=int8)
    """
    bits = as_mask(mask)
    return _backend.active.apply_mask(w, bits._shape, bits._bits, out)


def prune(
    w: ArrayLike,
    pattern: str | Pattern,
    *,
    out: NDArray[Any] | None = None,
    scores: ArrayLike | None = None,
    column_scale: ArrayLike | None = None,
    threads: int | None = None,
) -> NDArray[Any]:
    """`select` and `apply_mask` in one: the pruned weights, dense. See there for the parameters.

    Where it raises, `out` has not been written to.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> fs.prune(np.float32([0.1, -3, 2, 0.2]), "50%")
    array([ 0., -3.,  2.,  0.], dtype=float32)
    """
    return _backend.active.prune(w, _pattern(pattern)._spec, out, scores, column_scale, threads)


def pack(w: ArrayLike, mask: Bitmask | ArrayLike | None = None) -> BitmaskArray:
    """Store the kept weights and the mask.

    Parameters
    ----------
    w : array_like
        Weights.
    mask : Bitmask or array_like of bool, optional
        Of the shape of `w`. Every bit of every kept value survives, NaN and −0.0 among them. Without a mask all is
        kept that is ``!= 0``: NaN is, −0.0 is not.

    Raises
    ------
    FastSparseError
        If the dtype is not supported or the mask does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> fs.pack(np.float16([0, 7, 0, -0.0])).values
    array([7.], dtype=float16)
    """
    if mask is None:
        return new_array(*_backend.active.pack(w, None, None), None)
    bits = as_mask(mask)
    return new_array(*_backend.active.pack(w, bits._shape, bits._bits), None)


def compress(
    w: ArrayLike,
    pattern: str | Pattern,
    *,
    scores: ArrayLike | None = None,
    column_scale: ArrayLike | None = None,
    threads: int | None = None,
) -> BitmaskArray:
    """`select` and `pack` in one go. See `select` for the parameters.

    The result remembers an n:m, top-k or block pattern.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> s = fs.compress(np.float32([[0.1, -3, 2, 0.2]]), "2:4")
    >>> s.values, s.pattern
    (array([-3.,  2.], dtype=float32), <NM 2:4: 2 zeros in every 4 (50 %)>)
    """
    chosen = _pattern(pattern)
    parts = _backend.active.compress(w, chosen._spec, scores, column_scale, threads)
    return new_array(*parts, chosen if chosen._lasting else None)


def unpack(s: BitmaskArray | QuantizedArray, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The dense tensor; the same as `BitmaskArray.to_dense`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> fs.unpack(fs.pack(np.int8([0, 3, 0])))
    array([0, 3, 0], dtype=int8)
    """
    if not isinstance(s, BitmaskArray | QuantizedArray):
        raise FastSparseError(f"s: expected a BitmaskArray or QuantizedArray, got {type(s).__name__}{torch_hint(s)}")
    return s.to_dense(out)


def linear(
    x: ArrayLike,
    s: BitmaskArray | PreparedWeights | QuantizedArray,
    bias: ArrayLike | None = None,
    *,
    weight_scale: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """``x @ s.T + bias``, computed from the packed weights as they are.

    Products and sums are float32 and the result is rounded once. It is the same for every number of threads. A weight
    that was dropped contributes nothing, not even where `x` is infinite or NaN.

    With int8 weights it is ``x @ (weight_scale[:, None] * s).T + bias``: each row of `x` is rounded to int8 by a step
    of its own, the sums are those of integers, and the result is the same everywhere.

    Parameters
    ----------
    x : array_like, ``(…, cols)``
        Activations: float32, or of the dtype of the weights; with int8 weights float32, float16, bfloat16 or int8. They
        are copied.
    s : BitmaskArray, PreparedWeights or QuantizedArray
        Weights of at least two dimensions, seen as a matrix ``[rows, cols]``: float32, float16, bfloat16, or int8.
    bias : array_like, optional
        ``[rows]``: float32, float16 or bfloat16.
    weight_scale : float or array_like, optional
        What each row of int8 weights is multiplied by, ``[rows]``: float32, float16 or bfloat16. int8 weights need it,
        others take none; a QuantizedArray has its own.
    out : ndarray, optional
        Written to and returned: writeable, C-contiguous, of shape ``(…, rows)`` and the dtype of the result.

    Returns
    -------
    ndarray
        ``(…, rows)``, of the dtype of `x`; float32 where that is int8.

    Raises
    ------
    FastSparseError
        If dtypes or shapes do not fit, or `out` overlaps an input.

    Notes
    -----
    With few rows of `x` the time is that of reading the packed weights, of which there are fewer than dense ones; with
    many it is that of multiplying: the kept weights only where there are zeros enough, else all of them. In a row of
    `x` that holds an infinity or NaN each kept weight is multiplied by itself, which is several times slower. With
    bfloat16 on both sides a CPU that multiplies it may take subnormal numbers as zero.

    The step of a row of `x` is ``max |x| / 127``, and its elements become ``rint(x / max * 127)``. A row that holds an
    infinity or NaN has no step; with int8 weights all its results are NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> s = fs.compress(np.float32([[0.1, -4, 0.2, 3], [5, 0.3, 0.4, -6]]), "2:4")
    >>> fs.linear(np.float32([[1, 1, 1, 1], [0, 1, 0, 2]]), s, bias=np.float32([0.5, 0]))
    array([[ -0.5,  -1. ],
           [  2.5, -12. ]], dtype=float32)

    >>> q = fs.compress(np.int8([[1, -40, 2, 30], [50, 3, 4, -60]]), "2:4")
    >>> fs.linear(np.float32([127, 1, 0, 2]), q, weight_scale=np.float32([0.1, 0.2]))
    array([   2., 1246.], dtype=float32)
    """
    if not isinstance(s, BitmaskArray | PreparedWeights | QuantizedArray):
        kinds = "a BitmaskArray, PreparedWeights or a QuantizedArray"
        raise FastSparseError(f"s: expected {kinds}, got {type(s).__name__}{torch_hint(s)}")
    return s._linear(x, bias, weight_scale, out)


def set_num_threads(threads: int | None) -> None:
    """Set how many threads a call uses at most.

    Parameters
    ----------
    threads : int or None
        At least 1. None goes back to ``FASTSPARSE_NUM_THREADS`` or, without it, the cores that this process may use.

    Raises
    ------
    FastSparseError
        If it is neither.

    Examples
    --------
    >>> import fastsparse as fs
    >>> fs.set_num_threads(1)
    >>> fs.set_num_threads(None)
    """
    _backend.active.set_num_threads(threads)


def show_runtime() -> None:
    """Print version, backend, build profile, instruction set and number of threads.

    Examples
    --------
    >>> import fastsparse as fs
    >>> fs.show_runtime()  # doctest: +ELLIPSIS
    fastsparse ...
    backend: ...
    ISA: ...
    threads: ...
    """
    active = _backend.active
    name = "numpy" if active.get_isa() == "numpy" else "native"
    print(f"fastsparse {_backend.version()}")
    print(f"backend: {name} ({active.build_profile()} build)")
    print(f"ISA: {active.get_isa()} (available: {', '.join(active.available_isas())})")
    print(f"threads: {active.get_num_threads()}{', on the OpenMP team of torch' if active.uses_openmp() else ''}")
