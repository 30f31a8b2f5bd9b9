"""Prune neural-network weights on the CPU, store them as a bit mask plus the kept values, and compute with them."""

import typing

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
    "Sweep",
    "Threshold",
    "TopK",
    "Unstructured",
    "apply_mask",
    "compress",
    "detect",
    "linear",
    "pack",
    "pattern",
    "prune",
    "select",
    "set_num_threads",
    "show_runtime",
    "sweep",
    "unpack",
]


_SUBMODULES = (
    "analysis",
    "calibration",
    "checkpoint",
    "compressed_tensors",
    "coreml",
    "cutlass",
    "torch",
    "transformers",
)
"""Imported when they are asked for: some need packages that are optional."""

_FROM_ANALYSIS = ("Sweep", "detect", "sweep")
"""Likewise: most programs do without, and all wait for what is imported."""

if typing.TYPE_CHECKING:
    # Type checkers are told the names instead, so that they see those that are wrong.
    from fastsparse import analysis as analysis
    from fastsparse import calibration as calibration
    from fastsparse import checkpoint as checkpoint
    from fastsparse import compressed_tensors as compressed_tensors
    from fastsparse import coreml as coreml
    from fastsparse import cutlass as cutlass
    from fastsparse import torch as torch
    from fastsparse import transformers as transformers
    from fastsparse.analysis import Sweep as Sweep
    from fastsparse.analysis import detect as detect
    from fastsparse.analysis import sweep as sweep

    __version__: str
else:
    import sys
    import types

    class _Package(types.ModuleType):
        """The class of this module."""

    def _submodule(name):
        """A submodule, in the module's own dictionary. Completion in a shell does not evaluate what is a property."""

        def get(package):
            if name not in vars(package):
                raise AttributeError(name)  # `__getattr__` is asked next
            return vars(package)[name]

        def delete(package):
            get(package)
            del vars(package)[name]

        return property(get, lambda package, module: vars(package).update({name: module}), delete)

    for _name in _SUBMODULES:
        setattr(_Package, _name, _submodule(_name))
    sys.modules[__name__].__class__ = _Package

    def __getattr__(name):
        if name == "__version__":
            return _backend.version()
        if name in _FROM_ANALYSIS:
            from fastsparse import analysis

            return globals().setdefault(name, getattr(analysis, name))
        if name in _SUBMODULES:
            import importlib

            try:
                return importlib.import_module(f"{__name__}.{name}")
            except (ImportError, FastSparseError) as error:
                # An AttributeError, so that what looks at every attribute, such as completion, goes on to the next.
                raise AttributeError(f"{__name__}.{name} cannot be imported: {error}") from error
        from fastsparse._errors import near_names

        hint = "" if name.startswith("_") else near_names(name, __dir__())
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
