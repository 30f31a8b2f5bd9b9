"""Core ML: the sparse weights of its programs, its weight files, and coremltools' pruning in a fraction of its time.

`constexpr_sparse_to_dense` stores the non-zeros and a bit mask as fastsparse does, but in one stream: rows do not start
on a byte. `prune_weights` and `to_sparse_params` need coremltools, the rest does not. `docs/interop.md` lists the
differences.

Where coremltools and torch are installed, the import tells `coremltools.convert` what packed layers are.
"""

from importlib.util import find_spec

from fastsparse.coreml._blobs import Blob, read_blobs, write_blobs
from fastsparse.coreml._mark import mark_sparse
from fastsparse.coreml._params import Flat, from_flat, from_sparse_params, to_flat, to_sparse_params
from fastsparse.coreml._prune import prune_weights

if find_spec("coremltools") is not None and find_spec("torch") is not None:
    from fastsparse.coreml import _convert_op as _convert_op

__all__ = [
    "Blob",
    "Flat",
    "from_flat",
    "from_sparse_params",
    "mark_sparse",
    "prune_weights",
    "read_blobs",
    "to_flat",
    "to_sparse_params",
    "write_blobs",
]
