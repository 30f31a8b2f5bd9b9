"""PyTorch: prune and pack tensors where they lie, and run models on packed weights. Everything is on the CPU."""

from fastsparse.torch._arranged import SparseConv, SparseConv1D
from fastsparse.torch._linear import SparseLinear
from fastsparse.torch._load import load
from fastsparse.torch._model import LayerReport, ModelReport, prune_model
from fastsparse.torch._pruning import PatternPruning, PatternSparsifier, prune_module
from fastsparse.torch._schedule import Pruner
from fastsparse.torch._sparsify import sparsify, to_dense
from fastsparse.torch._tensors import (
    apply_mask,
    as_array,
    as_tensor,
    compress,
    from_cutlass_24,
    linear,
    pack,
    prune,
    select,
    to_cutlass_24,
    unpack,
)
from fastsparse.torch._threads import adopt_threads

__all__ = [
    "LayerReport",
    "ModelReport",
    "PatternPruning",
    "PatternSparsifier",
    "Pruner",
    "SparseConv",
    "SparseConv1D",
    "SparseLinear",
    "apply_mask",
    "as_array",
    "as_tensor",
    "compress",
    "from_cutlass_24",
    "linear",
    "load",
    "pack",
    "prune",
    "prune_model",
    "prune_module",
    "select",
    "sparsify",
    "to_cutlass_24",
    "to_dense",
    "unpack",
]

adopt_threads()
