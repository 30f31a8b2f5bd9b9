"""Patterns: which weights go.

A pattern is a small immutable value. `str(p)` is its short form and `pattern(text)` reads it back; options that differ
from their default follow an ``@``, separated by commas: ``2:4@axis=0,tail=keep``.
"""

import math
import operator
import re
import sys
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, ClassVar

from fastsparse._errors import FastSparseError

__all__ = ["NM", "Block", "Nonzero", "Pattern", "Threshold", "TopK", "Unstructured", "pattern"]

_TAILS = ("proportional", "keep", "error")
_NORMS = ("l2", "l1", "max")
_MAX = sys.float_info.max
_FORMS = '"50%", "50%/row", "2:4", "top8/64", "75%/4x1", "75%/8", "threshold=0.01", "nonzero"'


class Pattern:
    """Base of all patterns; `isinstance(x, fs.Pattern)` tells one from its short form."""

    __slots__ = ("_spec",)

    _spec: tuple[Any, ...]
    """What the backends take, see `_core.pyi`."""

    _lasting: ClassVar[bool] = False
    """Whether a packed tensor can be known to obey it, from its mask alone."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pattern, (str(self),)

    def kept_count(self, shape: tuple[int, ...]) -> int | None:
        """How many elements of a tensor of this shape it keeps; None where the values decide.

        Zeros are rounded half to even, over the tensor, for each row or for each group, as `select` does.
        """
        return None


def _set_spec(p: Pattern, *spec: Any) -> None:
    object.__setattr__(p, "_spec", spec)


def integer(name: str, value: Any, least: int, most: int = sys.maxsize) -> int:
    """`value` as an int between `least` and `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        allowed = f"≥ {least}" if most == sys.maxsize else f"from {least} to {most}"
        raise FastSparseError(f"{name}: expected an integer {allowed}, got {value!r}")
    return number


def positive(name: str, value: Any) -> float:
    """`value`, a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FastSparseError(f"{name}: expected a number above 0, got {value!r}")
    return value


def _axis(value: Any) -> int:
    return integer("axis", value, -64, 63)  # NumPy's arrays have at most 64 dimensions


def _real(name: str, value: Any, least: float, most: float, allowed: str) -> float:
    """`value` as a float between `least` and `most`; NumPy's numbers are numbers, strings and bools are not."""
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.inf
    if not least <= number <= most:
        raise FastSparseError(f"{name}: expected {allowed}, got {value!r}")
    return number + 0.0  # −0.0 becomes 0.0: equal patterns have equal short forms


def _sparsity(value: Any) -> float:
    return _real("sparsity", value, 0.0, 1.0, "a number from 0 to 1, the share of zeros")


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise FastSparseError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def _percent(sparsity: float) -> str:
    """`sparsity` in percent, as the shortest decimal that reads back as the same float64."""
    from decimal import Context, Decimal  # 3 ms that an import of the package need not pay

    exact = Context(prec=17)  # what the caller's own context says does not count
    return f"{Decimal(repr(sparsity)).scaleb(2, exact).normalize(exact):f}%"


def _kept_of_groups(zeros: int, of: int, axis: int, tail: str, shape: tuple[int, ...]) -> int | None:
    """How many elements stay where every run of `of` along an axis loses `zeros`; None where that is an error."""
    if not -len(shape) <= axis < len(shape):
        return None
    length = shape[axis]
    groups, rest = divmod(length, of)
    if rest and tail == "error":
        return None
    lost = groups * zeros + (round(zeros * float(rest) / of) if tail == "proportional" else 0)
    return (math.prod(shape) // length if length else 0) * (length - lost)


def zeros_in_every(zeros: int, of: int) -> str:
    """What n:m is, as every message says it: ``3 zeros in every 4 (75 %)``."""
    percent = f"{100 * zeros / of:.4f}".rstrip("0").rstrip(".")
    return f"{zeros} zeros in every {of} ({percent} %)"


def _options(**options: tuple[Any, Any]) -> str:
    """The ``@name=value`` suffix: each option is a pair (value, default)."""
    given = ",".join(f"{name}={value}" for name, (value, default) in options.items() if value != default)
    return f"@{given}" if given else ""


@dataclass(frozen=True, slots=True)
class Unstructured(Pattern):
    """Exactly `round(sparsity · N)` zeros, the smallest magnitudes, over the tensor or in each row.

    Parameters
    ----------
    sparsity : float
        Share of zeros, 0 to 1.
    per : {"tensor", "row"}
        What N counts: all elements, or those of each row of the matrix view.

    Raises
    ------
    FastSparseError
        If `sparsity` is not a number from 0 to 1 or `per` is something else.

    Examples
    --------
    >>> str(Unstructured(0.5)), str(Unstructured(0.5, per="row"))
    ('50%', '50%/row')
    """

    sparsity: float
    per: str = "tensor"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", _sparsity(self.sparsity))
        _choice("per", self.per, ("tensor", "row"))
        _set_spec(self, "unstructured", self.sparsity, self.per)

    def kept_count(self, shape: tuple[int, ...]) -> int:
        """How many elements of a tensor of this shape it keeps."""
        size = math.prod(shape)
        rows = shape[0] if self.per == "row" and len(shape) > 1 else 1
        cols = size // rows if rows else 0
        return rows * (cols - round(self.sparsity * cols))

    def __str__(self) -> str:
        return _percent(self.sparsity) + ("/row" if self.per == "row" else "")


@dataclass(frozen=True, slots=True)
class TopK(Pattern):
    """Keep the `keep` largest magnitudes of each run of `of` along an axis.

    Parameters
    ----------
    keep : int
        Elements kept of each run, 0 to `of`.
    of : int
        Length of a run, at least 1.
    axis : int
        Axis of the tensor that the runs lie along.
    tail : {"proportional", "keep", "error"}
        The last run of an axis that `of` does not divide: it loses its share (rounded half to even), is kept whole, or
        is an error.

    Examples
    --------
    >>> str(TopK(8, of=64))
    'top8/64'
    """

    _lasting: ClassVar[bool] = True

    keep: int
    _: KW_ONLY
    of: int
    axis: int = -1
    tail: str = "proportional"

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", integer("of", self.of, 1))
        object.__setattr__(self, "keep", integer("keep", self.keep, 0, self.of))
        object.__setattr__(self, "axis", _axis(self.axis))
        _choice("tail", self.tail, _TAILS)
        _set_spec(self, "topk", self.keep, self.of, self.axis, self.tail)

    def kept_count(self, shape: tuple[int, ...]) -> int | None:
        """How many elements of a tensor of this shape it keeps; None where it has no such axis."""
        return _kept_of_groups(self.of - self.keep, self.of, self.axis, self.tail, shape)

    def __str__(self) -> str:
        return f"top{self.keep}/{self.of}" + _options(axis=(self.axis, -1), tail=(self.tail, "proportional"))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NM(Pattern):
    """n:m, that is n **zeros** in every m neighbours along an axis: ``3:4`` is 75 % sparse.

    Others count what is kept, so both numbers are given by name.

    Parameters
    ----------
    zeros : int
        Zeros in each group, 0 to `of`.
    of : int
        Length of a group, at least 1. Up to 64 there are dedicated kernels.
    axis : int
        Axis of the tensor that the groups lie along.
    tail : {"proportional", "keep", "error"}
        The last group of an axis that `of` does not divide: it gets its share of zeros (rounded half to even), is kept
        whole, or is an error.

    Examples
    --------
    >>> NM(zeros=3, of=4)
    <NM 3:4: 3 zeros in every 4 (75 %)>
    >>> str(NM(zeros=2, of=4, axis=0))
    '2:4@axis=0'
    """

    _lasting: ClassVar[bool] = True

    zeros: int
    of: int
    axis: int = -1
    tail: str = "proportional"

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", integer("of", self.of, 1))
        object.__setattr__(self, "zeros", integer("zeros", self.zeros, 0, self.of))
        object.__setattr__(self, "axis", _axis(self.axis))
        _choice("tail", self.tail, _TAILS)
        _set_spec(self, "nm", self.zeros, self.of, self.axis, self.tail)

    def kept_count(self, shape: tuple[int, ...]) -> int | None:
        """How many elements of a tensor of this shape it keeps; None where it has no such axis."""
        return _kept_of_groups(self.zeros, self.of, self.axis, self.tail, shape)

    def __str__(self) -> str:
        return f"{self.zeros}:{self.of}" + _options(axis=(self.axis, -1), tail=(self.tail, "proportional"))

    def __repr__(self) -> str:
        return f"<NM {self}: {zeros_in_every(self.zeros, self.of)}>"


@dataclass(frozen=True, slots=True)
class Block(Pattern):
    """Exactly `round(sparsity · blocks)` blocks go, those with the smallest norm.

    Parameters
    ----------
    shape : int or (int, int)
        A run of that length along `axis`, or a tile of rows × columns of the matrix view.
    sparsity : float
        Share of blocks that go, 0 to 1.
    axis : int
        Axis of the runs; tiles take none.
    norm : {"l2", "l1", "max"}
        What ranks a block: the mean of w², the mean of |w|, or the largest |w|. The shorter blocks at the ends are
        ranked by the mean over the elements that they have.

    Examples
    --------
    >>> str(Block((4, 1), 0.75)), str(Block(8, 0.5, axis=0, norm="l1"))
    ('75%/4x1', '50%/8@axis=0,norm=l1')
    """

    _lasting: ClassVar[bool] = True

    shape: int | tuple[int, int]
    sparsity: float
    axis: int = -1
    norm: str = "l2"

    def __post_init__(self) -> None:
        shape: int | tuple[int, int]
        if isinstance(self.shape, tuple | list):
            if len(self.shape) != 2:
                raise FastSparseError(f"shape: expected an integer or a pair (rows, columns), got {self.shape!r}")
            shape = (integer("shape[0]", self.shape[0], 1), integer("shape[1]", self.shape[1], 1))
        else:
            shape = integer("shape", self.shape, 1)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "sparsity", _sparsity(self.sparsity))
        object.__setattr__(self, "axis", _axis(self.axis))
        if isinstance(shape, tuple) and self.axis != -1:
            raise FastSparseError(f"axis: only runs (an integer shape) take one, got {self.axis} with the tile {shape}")
        _choice("norm", self.norm, _NORMS)
        _set_spec(self, "block", shape, self.sparsity, self.axis, self.norm)

    def __str__(self) -> str:
        size = f"{self.shape[0]}x{self.shape[1]}" if isinstance(self.shape, tuple) else str(self.shape)
        return f"{_percent(self.sparsity)}/{size}" + _options(axis=(self.axis, -1), norm=(self.norm, "l2"))


@dataclass(frozen=True, slots=True)
class Threshold(Pattern):
    """Zero where |w| ≤ `value`, compared in float64.

    Parameters
    ----------
    value : float
        A finite number. Below zero it prunes nothing by magnitude, but may by scores, which are signed.

    Examples
    --------
    >>> str(Threshold(0.01))
    'threshold=0.01'
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _real("value", self.value, -_MAX, _MAX, "a finite number"))
        _set_spec(self, "threshold", self.value)

    def __str__(self) -> str:
        return f"threshold={self.value!r}"


@dataclass(frozen=True, slots=True)
class Nonzero(Pattern):
    """Keep what is not zero: for tensors that are pruned already.

    Examples
    --------
    >>> str(Nonzero())
    'nonzero'
    """

    def __post_init__(self) -> None:
        _set_spec(self, "nonzero")

    def __str__(self) -> str:
        return "nonzero"


def pattern(text: str | Pattern) -> Pattern:
    """The pattern that a short form stands for; a pattern is returned as it is.

    Parameters
    ----------
    text : str or Pattern
        ``50%``, ``50%/row``, ``2:4`` (zeros : of), ``top8/64`` (keep / of), ``75%/4x1`` (tiles), ``75%/8`` (runs),
        ``threshold=0.01`` or ``nonzero``. Options follow an ``@``: ``2:4@axis=0,tail=keep``, ``75%/8@axis=0,norm=l1``.

    Raises
    ------
    FastSparseError
        If it is neither.

    Examples
    --------
    >>> pattern("2:4@axis=0")
    <NM 2:4@axis=0: 2 zeros in every 4 (50 %)>
    >>> pattern("12.5%/row")
    Unstructured(sparsity=0.125, per='row')
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str):
        hint = "" if isinstance(text, bool) or not isinstance(text, Real) else _hint(f"{float(text):g}")
        raise FastSparseError(f"pattern: expected a pattern or a short form such as {_FORMS}; got {text!r}{hint}")
    return _parse(text)


_GRAMMAR = r"""
    (?: (?P<zeros>\d{1,18}) : (?P<of>\d{1,18})
      | top (?P<keep>\d{1,18}) / (?P<run>\d{1,18})
      | (?P<percent>\d+\.?\d*|\.\d+) [ ]? %
        (?: / (?: (?P<per>row) | (?P<tall>\d{1,18}) x (?P<wide>\d{1,18}) | (?P<block>\d{1,18}) ) )?
      | threshold = (?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)
      | (?P<nonzero>nonzero)
    ) (?: @ (?P<options>\w+=[-\w]+(?:,\w+=[-\w]+)*) )?
"""


@lru_cache(maxsize=256)
def _parse(text: str) -> Pattern:
    # Compiled at the first use: it takes a tenth of the time of the whole import.
    found = re.fullmatch(_GRAMMAR, text.strip(), re.VERBOSE | re.ASCII)
    if found is None:
        raise FastSparseError(f"pattern: expected a short form such as {_FORMS}; got {text!r}{_hint(text.strip())}")
    part = found.groupdict()
    options = _parse_options(text, part["options"])
    try:
        return _build(part, options)
    except TypeError:
        raise FastSparseError(f"pattern: {text!r} takes no option {' or '.join(map(repr, options))}") from None
    except FastSparseError as error:
        raise FastSparseError(f"pattern: {text!r}: {error}{_hint(text.strip())}") from None


def _hint(text: str) -> str:
    """What is meant by a number, and by n:m of those who count what is kept."""
    if len(text) > 80:
        return ""
    swapped = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})(@.*)?", text, re.ASCII)
    if swapped is not None:
        zeros, of = int(swapped[1]), int(swapped[2])
        return f"; n:m is n zeros in every m: did you mean '{of}:{zeros}{swapped[3] or ''}'?" if zeros > of > 0 else ""
    number = re.fullmatch(r"([0-9]*\.?[0-9]+)(/.*)?", text, re.ASCII)
    if number is None or float(number[1]) > 100:
        return ""
    percent = _percent(float(number[1])) if float(number[1]) <= 1 else f"{number[1]}%"
    return f"; did you mean '{percent}{number[2] or ''}'?"


def _parse_options(text: str, options: str | None) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for option in options.split(",") if options else ():
        name, value = option.split("=")
        if name not in ("axis", "tail", "norm") or name in parsed:
            raise FastSparseError(f"pattern: expected each of axis, tail, norm at most once after @, got {text!r}")
        parsed[name] = int(value) if re.fullmatch(r"-?\d{1,18}", value) else value
    return parsed


def _build(part: dict[str, str], options: dict[str, Any]) -> Pattern:
    """The pattern of a match of the grammar; TypeError for an option that it does not have."""
    if part["zeros"]:
        return NM(zeros=int(part["zeros"]), of=int(part["of"]), **options)
    if part["keep"]:
        return TopK(int(part["keep"]), of=int(part["run"]), **options)
    if part["percent"]:
        # One correctly rounded conversion; dividing by 100 would round twice.
        sparsity = float(part["percent"] + "e-2")
        if part["tall"]:
            return Block((int(part["tall"]), int(part["wide"])), sparsity, **options)
        if part["block"]:
            return Block(int(part["block"]), sparsity, **options)
        return Unstructured(sparsity, per=part["per"] or "tensor", **options)
    if part["value"]:
        return Threshold(float(part["value"]), **options)
    return Nonzero(**options)
