"""Prune neural-network weights on the CPU, store them as a bit mask plus the kept values, and compute with them."""

import importlib
from typing import Any

from fastsparse import _backend
from fastsparse._errors import FastSparseError, FormatError
from fastsparse.masks import Bitmask
from fastsparse.ops import apply_mask, compress, linear, pack, prune, select, set_num_threads, show_runtime, unpack
from fastsparse.packed import BitmaskArray
from fastsparse.patterns import NM, Block, Nonzero, Pattern, Threshold, TopK, Unstructured, pattern
from fastsparse.prepared import PreparedWeights
from fastsparse.quantized import QuantizedArray

__all__ = [
    "NM",
    "Bitmask",
    "BitmaskArray",
    "Block",
    "FastSparseError",
    "FormatError",
    "Nonzero",
    "Pattern",
    "PreparedWeights",
    "QuantizedArray",
    "Threshold",
    "TopK",
    "Unstructured",
    "apply_mask",
    "compress",
    "linear",
    "pack",
    "pattern",
    "prune",
    "select",
    "set_num_threads",
    "show_runtime",
    "unpack",
]


_SUBMODULES = ("calibration", "checkpoint", "compressed_tensors", "coreml", "cutlass", "torch", "transformers")
"""Imported when they are asked for: some need packages that are optional."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _backend.version()
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
