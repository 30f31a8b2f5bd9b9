"""The sections of a recipe that say how weights are pruned with calibration data."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastsparse._errors import FastSparseError
from fastsparse.patterns import positive

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "SECTIONS",
    "Allocation",
    "Calibration",
    "Method",
    "check_keys",
    "one_of",
    "section",
    "section_keys",
]

METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
ALLOCATIONS = ("uniform", "owl", "loss")


@dataclass(frozen=True)
class Calibration:
    """The calibration data of a recipe, its section ``[calibration]``.

    Parameters
    ----------
    data : str, optional
        A text, or a ``.safetensors`` file with ``input_ids``; from the folder in which the command runs.
    samples, length : int
        How many pieces, and the tokens of each.
    seed : int, optional
        Draws the pieces from all of the text; by default they are its beginning.
    sequential : bool
        Whether each block sees what pruning the blocks before it makes of its input.
    clip : float, optional
        As in `calibration.Gram`: what bounds the tokens with the largest inputs.
    """

    data: str | None = None
    samples: int = 64
    length: int = 512
    seed: int | None = None
    sequential: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.data is not None and not isinstance(self.data, str):
            raise FastSparseError(f"data: expected the name of a file, got {self.data!r}")
        _integer("samples", self.samples, 1)
        _integer("length", self.length, 2)
        if self.seed is not None:
            _integer("seed", self.seed, 0)
        if not isinstance(self.sequential, bool):
            raise FastSparseError(f"sequential: expected true or false, got {self.sequential!r}")
        if self.clip is not None:
            positive("clip", self.clip)


@dataclass(frozen=True)
class Method:
    """How weights are chosen and changed, the section ``[method]`` of a recipe.

    Parameters
    ----------
    name : {"sparsegpt", "wanda", "alps", "magnitude"}
        See `fastsparse.calibration`.
    refine : int
        Steps of `calibration.refine` afterwards; 0 for none. Magnitude is never refined.
    damping, block_size
        As in `calibration.sparsegpt`.
    """

    name: str = "sparsegpt"
    refine: int = 10
    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self) -> None:
        one_of("method", self.name, METHODS)
        if isinstance(self.refine, bool) or not isinstance(self.refine, int) or self.refine < 0:
            raise FastSparseError(f"refine: expected a number of steps ≥ 0, got {self.refine!r}")
        _number("damping", self.damping, 0, math.inf)
        _integer("block_size", self.block_size, 1)


@dataclass(frozen=True)
class Allocation:
    """How an unstructured sparsity is spread over the layers, the section ``[allocation]`` of a recipe.

    Parameters
    ----------
    kind : {"uniform", "owl", "loss"}
        See `fastsparse.calibration.allocation`.
    m : float
        For "owl": how many times the mean an outlier is.
    spread : float
        For "owl": λ of the paper, ``lambda`` in a file.
    least, most : float
        Bounds of the sparsity of each layer, ``min`` and ``max`` in a file.
    """

    kind: str = "uniform"
    m: float = 5.0
    spread: float = 0.08
    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        one_of("allocation", self.kind, ALLOCATIONS)
        _number("m", self.m, 0, math.inf)
        for name, value in (("lambda", self.spread), ("min", self.least), ("max", self.most)):
            _number(name, value, 0, 1)
        if self.least > self.most:
            raise FastSparseError(f"min, max: expected min ≤ max, got {self.least:g} and {self.most:g}")


def section(name: str, table: Any) -> Calibration | Method | Allocation:
    """A section of a file.

    Raises
    ------
    FastSparseError
        If it holds another key, or a value is not as described for its class.
    """
    kind, keys = _SECTIONS[name]
    if not isinstance(table, Mapping):
        raise FastSparseError(f"{name}: expected a section [{name}], got {table!r}")
    check_keys(table, keys, f" of [{name}]")
    try:
        return kind(**{keys[key]: value for key, value in table.items()})
    except FastSparseError as error:
        raise FastSparseError(f"[{name}]: {error}") from None


def section_keys(name: str, made: Calibration | Method | Allocation) -> dict[str, Any]:
    """The keys and values of a section in a file."""
    return {key: getattr(made, field) for key, field in _SECTIONS[name][1].items()}


_SECTIONS: dict[str, tuple[type[Calibration | Method | Allocation], dict[str, str]]] = {
    "calibration": (Calibration, {key: key for key in ("data", "samples", "length", "seed", "sequential", "clip")}),
    "method": (Method, {key: key for key in ("name", "refine", "damping", "block_size")}),
    "allocation": (Allocation, {"kind": "kind", "m": "m", "lambda": "spread", "min": "least", "max": "most"}),
}
"""What is made of each section, and the parameters that its keys are."""
SECTIONS = tuple(_SECTIONS)


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Refuses keys that are none of these, with one that is near."""
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise FastSparseError(f"unknown key {key!r}{where}; known are {', '.join(names)}{advice}")


def one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuses a value that is none of these."""
    if value not in known:
        raise FastSparseError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FastSparseError(f"{name}: expected an integer ≥ {least}, got {value!r}")


def _number(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise FastSparseError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r}")
