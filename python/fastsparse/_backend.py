"""Which backend computes: the native module `_core`, or the NumPy backend.

Calls go through `active`, so that tests can switch it within a process.
"""

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

from fastsparse._errors import FastSparseError

__all__ = ["active", "version"]


def _choose() -> Any:
    wanted = os.environ.get("FASTSPARSE_BACKEND", "")
    if wanted not in ("", "native", "numpy"):
        raise FastSparseError(f"FASTSPARSE_BACKEND: expected native or numpy, got {wanted!r}")
    if wanted != "numpy":
        try:
            # Not `from fastsparse import _core`: without the file that would complain of a circular import.
            return importlib.import_module("fastsparse._core")
        except ImportError as error:
            if wanted == "native":
                raise ImportError(f"FASTSPARSE_BACKEND=native, but the native module is missing: {error}") from error
            message = f"the native module is missing ({error}); fastsparse computes with NumPy, some fifty times slower"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    from fastsparse import _numpy

    return _numpy


if TYPE_CHECKING:
    from fastsparse import _core as active
else:
    active = _choose()


def version() -> str:
    """Version of the installed distribution."""
    from importlib import metadata  # 10 ms that an import of the package need not pay

    try:
        return metadata.version("fastsparse-py")
    except metadata.PackageNotFoundError:
        return "0+unknown"
