"""Recipes: which tensor of a checkpoint gets which pattern."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastsparse._errors import FastSparseError
from fastsparse.checkpoint._format import PACKABLE
from fastsparse.patterns import Pattern, Unstructured, pattern

__all__ = ["Recipe", "Rule"]

_FLOATING = PACKABLE[:6]

_EMBEDDING = re.compile(r"embed|(^|\.)(lm_head|wte|wpe|shared)(\.|$)")
"""Tables that are looked up, not multiplied with, and the output layer, which often is the same table: pruning them
costs the most accuracy for each byte saved. `wte` and `wpe` are GPT-2's names, `shared` is T5's."""


@dataclass(frozen=True)
class Rule:
    """What happens to the tensors whose name matches.

    Parameters
    ----------
    match : str
        A regular expression, searched for in the name of the tensor.
    pattern : Pattern or str, optional
        The pattern, or its short form.
    skip : bool
        Leave the tensors dense. A rule has a pattern or skips, one of the two.

    Raises
    ------
    FastSparseError
        If `match` is no regular expression, `pattern` no pattern, or not exactly one of `pattern` and `skip` is given.
    """

    match: str
    pattern: Pattern | str | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        _regex("match", self.match)
        if not isinstance(self.skip, bool):
            raise FastSparseError(f"skip: expected true or false, got {self.skip!r}")
        if (self.pattern is None) != self.skip:
            raise FastSparseError(f"rule {self.match!r}: expected a pattern or skip = true, one of the two")
        if self.pattern is not None:
            object.__setattr__(self, "pattern", pattern(self.pattern))


@dataclass(frozen=True)
class Recipe:
    """Which tensor of a checkpoint gets which pattern.

    The first rule that matches a tensor's name decides. Where none does, tensors that `exclude` names stay dense, and
    `default` goes to those that `include` names and to the usual ones: floating, two or more dimensions, more than
    `min_size` elements, and neither an embedding nor `lm_head`.

    Parameters
    ----------
    rules : iterable of Rule
        In the order in which they are tried. A rule may name any tensor whose dtype can be packed, an embedding too.
    default : Pattern or str, optional
        The pattern, or its short form, for tensors without a rule. None leaves them dense.
    include, exclude : iterable of str
        Regular expressions, searched for in the name of the tensor. `include` adds to the usual selection, it does not
        replace it.
    min_size : int
        Tensors of up to this many elements stay dense unless a rule or `include` names them.
    scope : str
        ``"tensor"``, or ``"global"``: the tensors that get the default, which has to be a share over the whole tensor
        such as ``50%``, then compete with each other, and exactly that share of all their elements goes. Those with a
        rule of their own are not counted. Ties are kept by name, then index.
    min_sparsity, max_sparsity : float, optional
        With the global scope, the least and the largest share of zeros in each tensor that competes, rounded to whole
        elements.

    Raises
    ------
    FastSparseError
        If a parameter is not as described, or the bounds do not enclose the default.

    Examples
    --------
    >>> recipe = Recipe(rules=[Rule("attn", "2:4"), Rule("norm", skip=True)], default="50%")
    >>> recipe.choose("layer.0.attn.weight", "BF16", (64, 64))
    <NM 2:4: 2 zeros in every 4 (50 %)>
    >>> recipe.choose("embed_tokens.weight", "BF16", (64, 64))
    'an embedding'
    """

    rules: tuple[Rule, ...] = ()
    default: Pattern | str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 2048
    scope: str = "tensor"
    min_sparsity: float | None = None
    max_sparsity: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise FastSparseError(f"rules: expected rules, got {rule!r}")
        if self.default is not None:
            object.__setattr__(self, "default", pattern(self.default))
        object.__setattr__(self, "include", _regexes("include", self.include))
        object.__setattr__(self, "exclude", _regexes("exclude", self.exclude))
        if not isinstance(self.min_size, int) or isinstance(self.min_size, bool) or self.min_size < 0:
            raise FastSparseError(f"min_size: expected an integer ≥ 0, got {self.min_size!r}")
        self._check_scope()

    def _check_scope(self) -> None:
        if self.scope not in ("tensor", "global"):
            raise FastSparseError(f"scope: expected 'tensor' or 'global', got {self.scope!r}")
        if self.scope == "tensor":
            for name in ("min_sparsity", "max_sparsity"):
                if getattr(self, name) is not None:
                    raise FastSparseError(f"{name}: it needs scope 'global'")
            return
        if not isinstance(self.default, Unstructured) or self.default.per != "tensor":
            raise FastSparseError(f"scope: 'global' needs a default like 50%, got {self.default}")
        least, most = _share("min_sparsity", self.min_sparsity, 0.0), _share("max_sparsity", self.max_sparsity, 1.0)
        if not least <= self.default.sparsity <= most:
            raise FastSparseError(
                f"min_sparsity, max_sparsity: {least} to {most} does not hold the default {self.default}"
            )

    def competes(self, name: str) -> bool:
        """Whether a tensor that is pruned takes part in global pruning."""
        return self.scope == "global" and not any(re.search(rule.match, name) for rule in self.rules)

    @classmethod
    def of(cls, recipe: "Recipe | Pattern | str") -> "Recipe":
        """A recipe as it is; a pattern or its short form becomes the default of an otherwise empty recipe."""
        return recipe if isinstance(recipe, Recipe) else cls(default=pattern(recipe))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Reads a TOML file: keys `default`, `include`, `exclude`, `min_size`, `scope`, `min_sparsity`, `max_sparsity`,
        and `[[rule]]` tables with `match` and `pattern` or `skip = true`.

        Raises
        ------
        FastSparseError
            If the file is not TOML, holds another key, or a value is not as described for the class.
        OSError
            If the file cannot be read.
        """
        try:
            with open(path, "rb") as file:
                table = tomllib.load(file)
            return cls._from_table(table)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, FastSparseError) as error:
            raise FastSparseError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def _from_table(cls, table: Mapping[str, Any]) -> "Recipe":
        _known_keys(table, ("rule", *(field.name for field in fields(cls) if field.name != "rules")))
        rules = table.get("rule", [])
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise FastSparseError("rule: expected [[rule]] tables")
        for rule in rules:
            _known_keys(rule, ("match", "pattern", "skip"))
            if "match" not in rule:
                raise FastSparseError("rule: match is missing")
        options = {key: value for key, value in table.items() if key != "rule"}
        return cls(rules=tuple(Rule(**rule) for rule in rules), **options)

    def choose(self, name: str, dtype: str, shape: tuple[int, ...]) -> Pattern | str:
        """The pattern for a tensor, or the reason why it stays dense.

        Parameters
        ----------
        name : str
            Name of the tensor.
        dtype : str
            Its dtype, by the name that safetensors gives it, such as ``BF16``.
        shape : tuple of int
            Its shape.
        """
        chosen = self._named(name) or self._usual(name, dtype, shape)
        if isinstance(chosen, Pattern) and dtype not in PACKABLE:
            return f"dtype {dtype} is not pruned"
        return chosen

    def _named(self, name: str) -> Pattern | str | None:
        """What the rules and the lists of names say, if anything."""
        for rule in self.rules:
            if re.search(rule.match, name):
                return rule.pattern if rule.pattern is not None else f"skipped by rule {rule.match!r}"
        for expression in self.exclude:
            if re.search(expression, name):
                return f"excluded by {expression!r}"
        if self.default is None:
            return "no rule matches"
        if any(re.search(expression, name) for expression in self.include):
            return self.default
        return None

    def _usual(self, name: str, dtype: str, shape: tuple[int, ...]) -> Pattern | str:
        """What happens to a tensor that nothing names."""
        size = 1
        for length in shape:
            size *= length
        if dtype not in _FLOATING:
            return f"dtype {dtype} is not pruned unless named"
        if len(shape) < 2:
            return "fewer than two dimensions"
        if size <= self.min_size:
            return f"no more than {self.min_size} elements"
        if _EMBEDDING.search(name):
            return "an embedding"
        assert self.default is not None, "`_named` has an answer for recipes without a default"
        return self.default


def _regex(name: str, text: Any) -> None:
    try:
        re.compile(text)
    except (TypeError, re.error, RecursionError, OverflowError) as error:
        raise FastSparseError(f"{name}: {text!r} is not a regular expression: {error}") from None
    if not isinstance(text, str):
        raise FastSparseError(f"{name}: expected a string, got {text!r}")


def _regexes(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise FastSparseError(f"{name}: expected a list of regular expressions, got {texts!r}")
    found = tuple(texts)
    for text in found:
        _regex(name, text)
    return found


def _share(name: str, value: Any, default: float) -> float:
    """A share from 0 to 1, the default for None."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FastSparseError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return value


def _known_keys(table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise FastSparseError(f"unknown key {key!r}; known are {', '.join(known)}")
