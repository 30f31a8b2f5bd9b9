"""The threads that kernels run on in a process where torch computes: torch's own.

Those of an OpenMP team spin for a while after each operation of torch. A pool beside them has to share the cores with
threads that spin, and a packed model was slower than a dense one for it.
"""

from pathlib import Path

import torch

from fastsparse import _backend

__all__ = ["adopt_threads"]


def adopt_threads() -> bool:
    """Run the kernels on the OpenMP threads that torch computes with, if it was built with any.

    Returns
    -------
    bool
        Whether it has any that can be used: those of libgomp, and of the libraries of LLVM and Intel on Linux. Where it
        has none, and in a child that was forked, the kernels keep a pool of their own.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return bool(_backend.active.adopt_openmp(str(library)))
