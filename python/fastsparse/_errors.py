"""The exceptions of fastsparse, and what several messages say."""

from collections.abc import Iterable
from typing import Any


class FastSparseError(ValueError):
    """Root of all errors that fastsparse raises about its arguments."""


class FormatError(FastSparseError):
    """Packed parts, masks or files that contradict themselves."""


def torch_hint(value: Any) -> str:
    """What a message about a tensor of torch ends with; empty for everything else."""
    return "; fastsparse.torch has the same functions for tensors" if hasattr(value, "__torch_function__") else ""


def near_names(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name ends with: up to three known ones that are like it."""
    import difflib  # 2 ms that only a mistake needs to pay

    near = difflib.get_close_matches(name, list(known), 3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
