"""The NumPy backend, beside the native one: the same names, results and messages as `_core`, some fifty times slower.

Weights are handled as their bits. For all IEEE-like formats the bits without the sign, read as an unsigned integer,
order the magnitudes: finite numbers first, then infinity, then the NaNs. That integer is the *key*; all selection
compares keys.
"""

from fastsparse._numpy._analysis import (
    common_zeros,
    energies_by_rank,
    energies_of_largest,
    energy_of_mask,
    nonzero,
    uniform_blocks,
)
from fastsparse._numpy._blocks import lay_blocks, linear_blocks, prefers_blocks, unlay_blocks
from fastsparse._numpy._calibration import prune_columns, refine_step
from fastsparse._numpy._indexed import index, linear_indexed, prefers_indices, unindex
from fastsparse._numpy._linear import linear
from fastsparse._numpy._masks import check_bits, from_bool, to_bool
from fastsparse._numpy._norms import block_norms, blocks_above
from fastsparse._numpy._pack import apply_mask, compress, pack, prune, select, unpack
from fastsparse._numpy._parts import check_parts, check_pattern
from fastsparse._numpy._runtime import (
    adopt_openmp,
    available_isas,
    build_profile,
    get_isa,
    get_num_threads,
    limit_threads,
    set_isa,
    set_num_threads,
    uses_openmp,
)

__all__ = [
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
    "energies_by_rank",
    "energies_of_largest",
    "energy_of_mask",
    "from_bool",
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
    "refine_step",
    "select",
    "set_isa",
    "set_num_threads",
    "to_bool",
    "uniform_blocks",
    "unindex",
    "unlay_blocks",
    "unpack",
    "uses_openmp",
]
