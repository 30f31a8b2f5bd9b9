"""Threads and instruction sets; NumPy has its own."""

import operator
import os
import threading

from fastsparse._errors import FastSparseError
from fastsparse._numpy._arguments import check_threads

_ISAS = ("amx", "avx512", "avx2", "neon", "scalar")


def _threads_of_environment() -> int:
    given = os.environ.get("FASTSPARSE_NUM_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (given.isascii() and given.strip().isdecimal()) or int(given) < 1:
        raise FastSparseError(f"FASTSPARSE_NUM_THREADS: expected an integer ≥ 1, got {given!r}")
    return int(given)


def _check_isa_of_environment() -> None:
    """NumPy has no kernels to choose from, but a name that means nothing is an error here too."""
    given = os.environ.get("FASTSPARSE_ISA")
    if given is not None and given not in _ISAS:
        raise FastSparseError(f"FASTSPARSE_ISA: expected one of {', '.join(_ISAS)}, got {given!r}")


_check_isa_of_environment()
_threads = _threads_of_environment()
_limit = threading.local()


def set_num_threads(threads: int | None) -> None:
    """Remembers the number; NumPy's own threads are its affair."""
    global _threads
    check_threads(threads)
    _threads = _threads_of_environment() if threads is None else operator.index(threads)


def get_num_threads() -> int:
    """What `set_num_threads` set, but no more than the limit of this thread."""
    limit = getattr(_limit, "threads", None)
    return _threads if limit is None else min(_threads, limit)


def limit_threads(threads: int | None) -> int | None:
    """Remembers the number for this thread; returns the one before."""
    check_threads(threads)
    before: int | None = getattr(_limit, "threads", None)
    _limit.threads = threads
    return before


def adopt_openmp(library: str) -> bool:
    """NumPy has threads of its own."""
    return False


def uses_openmp() -> bool:
    """NumPy has threads of its own."""
    return False


def set_isa(name: str) -> None:
    """Takes the only name there is."""
    if name != "numpy":
        raise FastSparseError(f"isa: expected one of numpy, got {name!r}")


def get_isa() -> str:
    """The only name there is."""
    return "numpy"


def available_isas() -> list[str]:
    """The only name there is."""
    return ["numpy"]


def build_profile() -> str:
    """There is nothing to build."""
    return "python"
