"""The backend interface: `_core` (Rust) and `_numpy` (NumPy) provide all of this, with equal results and messages.

Both backends validate, so that a call costs little Python. A *spec* is what `Pattern._spec` holds:

    ("unstructured", sparsity, "tensor" | "row")
    ("exact", zeros)                                  that many zeros over the tensor (global pruning)
    ("topk", keep, of, axis, tail)
    ("nm", zeros, of, axis, tail)
    ("block", (rows, cols) | run, sparsity, axis, norm)
    ("threshold", value)
    ("nonzero",)

Array arguments are anything `np.asarray` takes; results are fresh C-contiguous arrays, parts of packed tensors and mask
bits are read-only. `shape` is the tensor's shape, `bits` the mask of its matrix view: uint8 `[rows, ceil(cols/8)]`.
"""

import os
import pathlib
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CheckpointFolder",
    "CheckpointReader",
    "CheckpointWriter",
    "TensorBytes",
    "__version__",
    "adopt_openmp",
    "apply_mask",
    "available_isas",
    "block_norms",
    "blocks_above",
    "build_profile",
    "check_bits",
    "check_parts",
    "check_pattern",
    "common_zeros",
    "compress",
    "count_magnitudes",
    "digest",
    "energies_by_rank",
    "energies_of_largest",
    "energy_of_mask",
    "from_bool",
    "from_dlpack",
    "get_isa",
    "get_num_threads",
    "index",
    "lay_blocks",
    "limit_threads",
    "linear",
    "linear_blocks",
    "linear_indexed",
    "nonzero",
    "pack",
    "prefers_blocks",
    "prefers_indices",
    "prune",
    "prune_columns",
    "rank_magnitudes",
    "refine_step",
    "select",
    "set_isa",
    "set_num_threads",
    "sum_of_squares",
    "to_bool",
    "to_dlpack",
    "uniform_blocks",
    "unindex",
    "unlay_blocks",
    "unpack",
    "uses_openmp",
]
__version__: str

_Shape: TypeAlias = tuple[int, ...]
_Spec: TypeAlias = tuple[Any, ...]
_Mask: TypeAlias = tuple[_Shape, NDArray[np.uint8], int]
"""shape, bits, number of bits set"""
_Parts: TypeAlias = tuple[_Shape, NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]
"""shape, values, bitmask, row_offsets"""
_Layout: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[np.uint16], NDArray[np.int64]]
"""Column indices, for groups of rows and blocks of columns, as even as possible. Weights and their columns within the
block; steps of each block of each group; the step at which each group begins, and the end. Columns of uint8: groups of
16 rows, blocks of 255 columns at most, weights and columns `[steps, 32]`, two of each row of the group in turn, 255
where there is none. Of uint16: rows, blocks of 8191, `[steps, 16]`, 8191 where there is none."""

_Blocks: TypeAlias = tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.int64]]
"""Dense blocks, cut to at most 16 rows (the largest divisor). A band is as many rows; its kept blocks side by side, cut
into panels of 16 columns: values `[panels, rows of a band, 16]`. The number of each block within its band, one beyond
the last where it only fills a panel. The block at which each band begins, and the end."""

def select(
    w: ArrayLike, spec: _Spec, scores: ArrayLike | None, column_scale: ArrayLike | None, threads: int | None
) -> _Mask: ...
def apply_mask(w: ArrayLike, shape: _Shape, bits: NDArray[np.uint8], out: NDArray[Any] | None) -> NDArray[Any]: ...
def prune(
    w: ArrayLike,
    spec: _Spec,
    out: NDArray[Any] | None,
    scores: ArrayLike | None,
    column_scale: ArrayLike | None,
    threads: int | None,
) -> NDArray[Any]: ...
def pack(w: ArrayLike, shape: _Shape | None, bits: NDArray[np.uint8] | None) -> _Parts:
    """Without a mask (`shape` and `bits` None) keeps what is `!= 0`, NaN among it."""

def compress(
    w: ArrayLike, spec: _Spec, scores: ArrayLike | None, column_scale: ArrayLike | None, threads: int | None
) -> _Parts: ...
def unpack(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: _Shape,
    out: NDArray[Any] | None,
) -> NDArray[Any]: ...
def from_dlpack(capsule: object) -> NDArray[Any]:
    """An array over the memory of the tensor in a capsule of DLPack, bfloat16 too; the capsule must go nowhere else.

    Raises BufferError if the tensor is not on the CPU or of another dtype.
    """

def to_dlpack(array: NDArray[Any]) -> object:
    """A capsule of DLPack over the memory of an array.

    Raises BufferError if it is read-only, of another dtype, or its strides are negative or no whole elements.
    """

def linear(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: _Shape,
    x: ArrayLike,
    bias: ArrayLike | None,
    weight_scale: ArrayLike | None,
    out: NDArray[Any] | None,
    groups: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """`x @ weights.T + bias` for x of shape `(…, cols)`, in the dtype of x, float32 inside. int8 weights take a
    scale, and x of any float dtype, which is rounded to int8 by rows, or of int8, which gives float32. The mask
    is known to have at most `groups[0]` of each `groups[1]` neighbours of a row."""

def prefers_indices(values: NDArray[Any], shape: _Shape, batch: int) -> bool:
    """Whether column indices compute faster than the mask, for `batch` rows of activations."""

def index(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: _Shape,
    in_bytes: bool | None = None,
) -> _Layout:
    """float32, float16 or bfloat16 weights by column indices of one byte or two; by default what computes faster."""

def unindex(
    values: NDArray[Any],
    columns: NDArray[Any],
    steps: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: _Shape,
    kept: int,
) -> _Parts:
    """The packed form again, which has `kept` values."""

def linear_indexed(
    values: NDArray[Any],
    columns: NDArray[Any],
    steps: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: _Shape,
    x: ArrayLike,
    bias: ArrayLike | None,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """As `linear`."""

def prefers_blocks(values: NDArray[Any], shape: _Shape, block: tuple[int, int], batch: int) -> bool:
    """Whether blocks of rows × columns compute faster than the mask, for `batch` rows of activations."""

def lay_blocks(
    values: NDArray[Any],
    bitmask: NDArray[np.uint8],
    row_offsets: NDArray[np.int64],
    shape: _Shape,
    block: tuple[int, int],
) -> _Blocks:
    """float32, float16 or bfloat16 weights that keep or drop whole blocks of rows × columns, by blocks."""

def unlay_blocks(
    values: NDArray[Any],
    index: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: _Shape,
    block: tuple[int, int],
    kept: int,
) -> _Parts:
    """The packed form again, which has `kept` values."""

def linear_blocks(
    values: NDArray[Any],
    index: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shape: _Shape,
    block: tuple[int, int],
    x: ArrayLike,
    bias: ArrayLike | None,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """As `linear`."""

def block_norms(w: ArrayLike, length: int, axis: int) -> NDArray[np.float32]:
    """The l2 norms of blocks along an axis, to the bit those that NumPy computes in float32 or float16, as float32."""

def blocks_above(norms: NDArray[np.float32], shape: _Shape, value: float, length: int, axis: int) -> _Mask:
    """The mask of the blocks along an axis whose norm is above a number."""

def check_parts(values: ArrayLike, bitmask: ArrayLike, shape: _Shape) -> _Parts:
    """Checks parts from outside and computes the offsets; FormatError. Contiguous parts are not copied."""

def check_pattern(shape: _Shape, bits: NDArray[np.uint8], spec: _Spec) -> None:
    """FormatError unless the mask is one that the n:m, top-k or block pattern could have given."""

def check_bits(bits: ArrayLike, shape: _Shape) -> _Mask:
    """A mask from outside: FormatError on a wrong shape or padding bits that are set."""

def from_bool(mask: ArrayLike) -> _Mask: ...
def to_bool(shape: _Shape, bits: NDArray[np.uint8]) -> NDArray[np.bool_]: ...
def prune_columns(
    w: NDArray[np.float32],
    inverse: NDArray[np.float32],
    scale: NDArray[np.float32],
    bits: NDArray[np.uint8] | None,
    groups: tuple[int, int, int] | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Prunes a block of columns from left to right, returns the weights and the mask.

    What column j loses, times `scale[j]`, times `inverse[j, k]` is taken off each later column k. `bits` is the mask;
    without it the smallest `|w| · scale` of each group of columns are pruned, ranked when the sweep arrives there.
    `groups`: zeros of a group, its length, zeros of the shorter group at the end."""

def refine_step(
    x: NDArray[np.float32],
    residual: NDArray[np.float32],
    direction: NDArray[np.float32],
    product: NDArray[np.float32] | None,
    scale: NDArray[np.float32],
    bits: NDArray[np.uint8],
    energy: NDArray[np.float64],
) -> None:
    """One step of conjugate gradients for each row on its own, from the product of its direction and the matrix.

    Without a product, the first direction. Preconditioned by `scale`. Changes x, residual, direction, energy."""

def energies_of_largest(
    w: ArrayLike, zeros: list[int], column_scale: ArrayLike | None, threads: int | None
) -> list[float]:
    """The sum of squares of what is ranked, of all but the smallest `n` elements, for each `n` of `zeros`."""

def energies_by_rank(
    w: ArrayLike, of: int, axis: int, column_scale: ArrayLike | None, threads: int | None
) -> tuple[list[float], list[float]]:
    """The same of the smallest, second smallest, … element of each group of `of` ≤ 64 along an axis; and of the groups
    at its end that are shorter, of which there may be none."""

def energy_of_mask(
    w: ArrayLike, shape: _Shape, bits: NDArray[np.uint8], column_scale: ArrayLike | None, threads: int | None
) -> float:
    """The same of what a mask keeps."""

def nonzero(w: ArrayLike) -> tuple[_Shape, NDArray[np.uint8], NDArray[np.int64]]:
    """Shape, mask and row offsets of what is `!= 0`; NaN is."""

def common_zeros(
    shape: _Shape, bits: NDArray[np.uint8], of: int, axis: int, least: int
) -> tuple[int, int | None] | None:
    """The least number of zeros of all groups of `of` ≤ 64 along an axis, where three in four have exactly that, and
    the least of a shorter group at its end. None where the first is below `least` ≥ 1 or no group is that long."""

def uniform_blocks(shape: _Shape, bits: NDArray[np.uint8], spec: _Spec) -> tuple[int, int, int] | None:
    """How many blocks of a block pattern a mask drops as a whole, how many it keeps so, and how many there are. None
    where of those that it does not drop more than a quarter are neither."""

def set_num_threads(threads: int | None) -> None:
    """None: back to FASTSPARSE_NUM_THREADS or, without it, the available cores."""

def get_num_threads() -> int: ...
def limit_threads(threads: int | None) -> int | None:
    """The most threads of the calls that this thread makes without naming a number; returns the limit before."""

def adopt_openmp(library: str) -> bool:
    """Run tasks on the OpenMP threads that this loaded shared library was linked with; False where there are none."""

def uses_openmp() -> bool:
    """Whether tasks run on OpenMP threads that were adopted, in this process."""

def set_isa(name: str) -> None:
    """Ceiling of the instruction set; ValueError for a name that is unknown or that this CPU lacks."""

def get_isa() -> str: ...
def available_isas() -> list[str]: ...
def build_profile() -> str: ...

# Files. Only the native module has these.

def sum_of_squares(w: ArrayLike) -> float:
    """In float64, of a supported dtype."""

def digest(data: NDArray[np.uint8] | TensorBytes | bytes) -> str:
    """XXH3 of contiguous bytes, 128 bits in hexadecimal."""

def count_magnitudes(w: ArrayLike, low: int, shift: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Counts |w| by the bits of its float64: how many are below `low`, and in the window of 2^21 bins of `1 << shift`
    that starts there which bins are not empty, in order, and how many each has."""

def rank_magnitudes(w: ArrayLike, low: int) -> tuple[int, int, int]:
    """How many |w| are below the number whose float64 has the bits `low`, how many equal it, and how many are zero."""

@final
class CheckpointReader:
    """An open safetensors file whose header was checked. FormatError, OSError."""

    def __new__(cls, path: str | os.PathLike[str], mmap: bool) -> CheckpointReader: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def tensors(self) -> list[tuple[str, str, _Shape, int]]:
        """Name, dtype, shape and size in bytes, in the order of the data."""

    def bytes(self, index: int) -> TensorBytes: ...
    def release(self, index: int) -> None:
        """Gives mapped pages back; they are read again when touched."""

@final
class TensorBytes:
    """The bytes of a tensor, a read-only buffer. It keeps the file mapped."""

@final
class CheckpointWriter:
    """A file of known size: tensors in any order from any thread, then `finish`. FastSparseError, OSError."""

    def __new__(
        cls,
        path: str | os.PathLike[str],
        entries: list[tuple[str, str, _Shape]],
        metadata: dict[str, str],
        overwrite: bool,
        mode: int | None,
    ) -> CheckpointWriter: ...
    def write(self, name: str, data: NDArray[np.uint8]) -> None:
        """Writes the next bytes of a tensor."""

    def flush(self) -> None:
        """Hands what was written so far to the disk; from any thread, beside writes."""

    def finish(self) -> None:
        """Flushes the file and gives it its name."""

    def abort(self) -> None:
        """Removes the file; nothing to do after `finish`."""

@final
class CheckpointFolder:
    """A folder that is filled under a temporary name, then `finish`. FastSparseError, OSError."""

    def __new__(cls, path: str | os.PathLike[str], overwrite: bool, mode: int) -> CheckpointFolder: ...
    @property
    def partial(self) -> pathlib.Path:
        """The temporary folder; it may hold what a killed run left."""

    def retain(self, names: set[str]) -> None:
        """Removes everything but the files of these names."""

    def finish(self) -> None:
        """Gives the folder its name, in exchange for an older one."""

    def abort(self) -> None:
        """Removes the folder; nothing to do after `finish`."""
